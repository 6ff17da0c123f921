"""A job that dies: the next run goes on from what was committed, and a third one writes nothing."""

import os
import re
import tempfile
from collections.abc import Callable
from multiprocessing import get_context

from qwen3_embedding_integrations import IndexReport, index_documents, shared_encoder
from qwen3_embedding_integrations.chroma import ChromaStore, connect, open_collection
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.documents import Document


def pieces() -> list[Document]:
    return [
        Document(piece, source=text.id, position=position)
        for text in load_texts()
        for position, piece in enumerate(re.findall(r"[^\s，。；,.;][^，。；,.;\n]*", text.text))
    ]


def die(report: IndexReport) -> None:
    print(f"the power fails; reported: {report.added} of {len(pieces())} rows", flush=True)
    os._exit(1)  # nothing is closed, nothing is tidied up


def run(folder: str, on_progress: Callable[[IndexReport], None] | None) -> None:
    client = connect(folder)
    store = ChromaStore(client, open_collection(client, "pieces", model="tiny"))
    job = index_documents(pieces(), shared_encoder("tiny"), store, on_progress=on_progress)
    print(f"{job.unchanged} there, {job.added} added, {len(store)} rows", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for on_progress in (die, None, None):
            job = get_context("spawn").Process(target=run, args=(folder, on_progress))
            job.start()
            job.join()
