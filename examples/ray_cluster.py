"""Ray: a corpus encoded by the actors of a cluster, here of this machine, and kept as Parquet.

On the command line: `qwen3-embedding index corpus/ --engine ray --to parquet --location vectors/`.
"""

import json
import tempfile
from pathlib import Path

from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.parquet import Embedded
from qwen3_embedding_integrations.ray_data import actor_options, read_files, write_embedded
from qwen3_embedding_integrations.stores import open_store

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    corpus, vectors = Path(folder, "articles.jsonl"), Path(folder, "vectors")
    lines = [json.dumps({"text": text.document}) for text in load_texts()]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    # On a cluster: connect("auto") first; a card for each actor by device="cuda".
    report = write_embedded(
        read_files([corpus], "tiny"), vectors, "tiny", actors=actor_options("tiny", num_actors=1)
    )
    print(f"{report.added} rows encoded, {report.failed} failed")

    # Loaded anywhere, as often as wanted, without a model.
    embedded = Embedded.find(vectors)
    assert embedded is not None
    store, encoder = open_store(
        "chroma", f"{folder}/index", "articles", {"model": "tiny"}, create=True
    )
    print(f"{embedded.load(store).added} rows loaded")
    query = encoder.encode_queries(["房东要卖房，我作为租客能优先买吗？"])[0]
    print("->", store.nearest(query, limit=1)[0].text[:40])
