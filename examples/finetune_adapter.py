"""Fine-tune: a LoRA adapter from queries and their documents, served by `lora=`.

On the command line: `qwen3-embedding finetune --train pairs.jsonl --task retrieval --out adapter`.
"""

import json
import tempfile
from pathlib import Path

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune

# A law article's name asks for its text: 64 rows show how it is done, not what it can gain.
rows = [{"query": text.id, "positive": text.text} for text in load_texts()[:64]]
with tempfile.TemporaryDirectory() as folder:
    train = Path(folder) / "train.jsonl"
    train.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    config = FinetuneConfig(
        train=str(train),
        out=f"{folder}/adapter",
        task="retrieval",
        model="tiny",  # with real weights: "Qwen/Qwen3-Embedding-0.6B", and on a card
        device="cpu",
        epochs=1,
        batch_size=16,
        max_length=64,
        learning_rate=1e-3,
    )
    report = finetune(config)
    print(report.trainable)
    before, after = (one["dev"]["ndcg@10"].value for one in (report.before, report.after))
    print(f"nDCG@10 of the held-out queries: {before:.3f} before, {after:.3f} after")
    with Qwen3Encoder(EncoderConfig(model="tiny", lora=config.out)) as tuned:
        print("served:", tuned.encode_queries([rows[0]["query"]]).shape, tuned.contract.lora)
