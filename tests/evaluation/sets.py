"""The committed dataset, as folders and files that `evaluate` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import qwen3_embedding_integrations as package

DATA = Path(__file__).parent.parent / "data" / "evaluation"


def write_help(folder: Path) -> Path:
    """Return a folder in BEIR's layout: the package's help articles, and questions on them."""
    shutil.copytree(DATA / "help", folder)
    articles = Path(package.__file__).parent / "demo_texts" / "help_en.jsonl"
    rows = [json.loads(line) for line in articles.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"_id": row.pop("id"), **row}, ensure_ascii=False) for row in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
