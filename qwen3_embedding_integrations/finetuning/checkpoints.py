"""Which checkpoints are whole: a kill while one is written or deleted leaves none that is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Note every file's hash, once all are on disk: from now on the checkpoint counts."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    hashes = {file.relative_to(folder).as_posix(): _hash(file) for file in files}
    write_whole(folder / MANIFEST, json.dumps(hashes, indent=2))


def newest_whole(folder: Path) -> str | None:
    """Return the checkpoint of the most steps that is as it was sealed; the others are deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in [path for path in found if not _is_whole(path)]:
        log.warning("%s is not whole: the run ended while it was written; deleted", path)
        shutil.rmtree(path)
        found.remove(path)
    return str(found[-1]) if found else None


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(_hash(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
