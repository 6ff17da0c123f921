"""Plan: hours, devices and bytes of a corpus before it is embedded, and what that rests on.

On the command line: `qwen3-embedding plan --documents 1e9 --tokens 300 --within-hours 24`.
"""

from qwen3_embedding_integrations import Qwen3Encoder
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.plan import (
    Plan,
    assumptions,
    known_rates,
    make_plan,
    measure_rate,
)


def show(device: str, plan: Plan) -> None:
    sizes = f"{plan.vector_bytes / 1e9:,.1f} GB of vectors, {plan.graph_bytes / 1e9:,.1f} of index"
    print(f"{plan.num_devices:,} x {device}: {plan.hours:,.2f} h; {sizes}")


# A billion documents, the 0.6B model, vectors cut to 512 numbers of one byte, done in a day.
corpus = {"num_documents": 1e9, "num_tokens": 300, "dimensions": 512, "storage": "int8"}
plans = [make_plan(rate, **corpus, within_hours=24) for rate in known_rates()]
for plan in plans:
    show(plan.rate.device, plan)
print("This rests on:", *assumptions(300, plans), sep="\n- ")

# Or measured here, on texts like yours: a million of them.
with Qwen3Encoder("tiny") as encoder:
    rate = measure_rate(encoder, lambda: [text.document for text in load_texts()], seconds=1)
    facts = {"num_tokens": rate.num_tokens, "size": None, "dimensions": encoder.dimensions}
    show("this machine, tiny", make_plan(rate, num_documents=1e6, **facts))
