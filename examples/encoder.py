"""Texts to vectors: queries and documents, cut to fewer dimensions, streamed."""

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder

documents = [
    "The capital of France is Paris.",
    "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
    "Water boils at 100 °C at sea level.",
]

# model="Qwen/Qwen3-Embedding-0.6B" is the default; "tiny" needs no download and is for trying.
with Qwen3Encoder(EncoderConfig(model="tiny", dimensions=128)) as encoder:
    vectors = encoder.encode_documents(documents)  # (3, 128) float32, unit length
    queries = encoder.encode_queries(["Which city is the capital of France?"])
    scores = (queries @ vectors.T)[0]
    print(documents[scores.argmax()], scores.round(3))

    # Any iterable, window by window, in bounded memory.
    num_rows = sum(len(window) for window in encoder.stream_documents(iter(documents)))
    print(num_rows, "documents,", encoder.stats())
