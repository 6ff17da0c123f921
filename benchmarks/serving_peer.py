"""sentence-transformers behind the smallest FastAPI application: what `serving` is measured beside.

python -m benchmarks.serving_peer MODEL_FOLDER PORT DTYPE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Asked(BaseModel):
    """OpenAI's request, as far as this application goes."""

    model: str
    input: list[str]
    input_type: str | None = None
    encoding_format: str | None = None


def make_app(folder: str, dtype: str) -> FastAPI:
    """Return an application that encodes each request when it comes."""
    model = SentenceTransformer(
        folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}, local_files_only=True
    )
    app = FastAPI()

    @app.get("/readyz")
    def is_ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/embeddings")
    def embed(asked: Asked) -> dict[str, Any]:
        encode = model.encode_query if asked.input_type == "query" else model.encode_document
        vectors = encode(asked.input, normalize_embeddings=True)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors.tolist())
        ]
        return {"object": "list", "data": data, "model": asked.model}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1], sys.argv[3]), port=int(sys.argv[2]), log_level="warning")
