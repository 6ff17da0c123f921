"""int8 weights for x86 CPUs, written once; the folder is a model like any other."""

import tempfile
from pathlib import Path

import numpy as np

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder, quantize_model
from qwen3_embedding_integrations.demo import load_texts

texts = [text.document for text in load_texts()]
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    # With real weights: quantize_model("Qwen/Qwen3-Embedding-0.6B", "./qwen3-0.6b-int8")
    written = quantize_model("tiny", Path(folder) / "tiny-int8")
    print(
        f"{written.num_bytes / 1e6:.1f} MB; kept in bfloat16: {sorted(written.kept) or 'nothing'}"
    )

    with (
        Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32")) as exact,
        Qwen3Encoder(str(written.folder)) as small,
    ):
        cosines = np.sum(exact.encode_documents(texts) * small.encode_documents(texts), axis=1)
        print(f"{len(texts)} texts, cosine: mean {cosines.mean():.5f}, least {cosines.min():.5f}")
        for fact in small.contract.difference(exact.contract):
            verdict = "refused" if fact.is_hard else "noted"
            print(f"an index of {fact.field} {fact.stored}, opened by {fact.given}: {verdict}")
