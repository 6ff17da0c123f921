"""How a text becomes a vector. Private: import from the package's root instead.

prompts -> tokenizer -> batching -> packing -> calls -> engine -> heads
    heads: layout -> graphs -> model (dense, kernels, attention)

Letters of every shape comment: B texts in a batch, T tokens in all of them together, H width of
the model, W width of the vectors (`dimensions`), P tokens of a shared instruction, Hq / Hk query /
key heads, D head width.
"""
