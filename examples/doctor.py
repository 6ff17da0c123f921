"""Doctor: whether a backend is right, and if not, the name of what is wrong with it.

Of a server: diagnose("http://localhost:8000/v1", model="Qwen/Qwen3-Embedding-0.6B").
"""

from typing import Any

from qwen3_embedding_integrations import EncoderConfig, diagnose, shared_encoder

encoder = shared_encoder(EncoderConfig(model="tiny"))


class Careless:
    """An adapter with a template of its own: a space after "Query:", as one often sees."""

    def encode_queries(self, queries: list[str], *, instruction: str | None = None) -> Any:
        instruction = instruction or encoder.config.instruction
        return encoder.encode_documents([f"Instruct: {instruction}\nQuery: {q}" for q in queries])

    def __getattr__(self, name: str) -> Any:
        return getattr(encoder, name)


for subject in (encoder, Careless()):
    diagnosis = diagnose(subject)
    print(f"{type(subject).__name__}: {'right' if diagnosis.is_right else 'wrong'}")
    for check in diagnosis.checks:
        print(f"  {check.verdict:8}{check.name}: {check.detail}")
    for fault in diagnosis.to_dict()["faults"]:
        print(f"  -> {fault['name']}: {fault['remedy']}")
