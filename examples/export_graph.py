"""Export: a model as an ONNX graph, run without torch behind the same classes.

On the command line: `qwen3-embedding export tiny ./tiny-onnx --precision int8`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from qwen3_embedding_integrations import export_model

WITHOUT_TORCH = """
import sys
from qwen3_embedding_integrations import Qwen3Encoder
with Qwen3Encoder(sys.argv[1]) as encoder:
    query = encoder.encode_queries(["What is the capital of France?"])[0]
    documents = ["Water boils at 100 °C.", "The capital of France is Paris."]
    print("->", documents[(encoder.encode_documents(documents) @ query).argmax()])
    print("torch imported:", "torch" in sys.modules, "| contract:", encoder.contract.model)
"""

with tempfile.TemporaryDirectory() as folder:
    # With real weights: export_model("Qwen/Qwen3-Embedding-0.6B", "./qwen3-0.6b-onnx", ...)
    written = export_model("tiny", Path(folder) / "tiny-onnx", precision="int8")
    print(
        f"{written.num_bytes / 1e6:.1f} MB; beside the core, {written.num_texts} texts: "
        f"mean cosine {written.mean_cosine:.4f}"
    )
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(written.folder)], check=True)
