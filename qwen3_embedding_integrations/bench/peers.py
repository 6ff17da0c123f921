"""Runs one other engine on token ids: what `bench --against` starts.

Run by path, on Linux, in a virtual environment that holds PEERS[PEER].requirements and not this
package: `peers.py PEER MODE MODEL_FOLDER FOLDER` loads the model from what the first run wrote to
FOLDER, and answers the request on stdin, JSON, with what `measure` returns.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[Sequence[int]]
# The hidden state of each text's last token, (B, H) float32; the longest comes first.
Embed = Callable[[Texts], NDArray[Any]]
Room = tuple[int, int]  # texts of a batch, and tokens of a text, at most

TORCH = ("torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "numpy==2.4.6")
# Causal attention never sees what stands behind a text's last token: on the right any id pads, so
# an engine without a mask is exact too. This one is in every vocabulary.
PAD_ID = 0
# GGUF's fields, and the keys of config.json that fill them.
GGUF_FIELDS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads",
    "key_length": "head_dim", "value_length": "head_dim", "layer_norm_rms_eps": "rms_norm_eps",
    "vocab_size": "vocab_size", "rope_freq_base": "rope_theta",
}  # fmt: skip


class Peer(NamedTuple):
    """One other engine."""

    requirements: tuple[str, ...]  # the product first
    modes: dict[str, str | None]  # and the form of the model that each loads; None: as it is
    load: Callable[[Path, Path, str, Room], Embed]  # (model, folder of the form, mode, room)
    convert: Callable[[Path, Path, str], None] | None = None  # (model, empty folder, form)


def product(name: str) -> Any:
    """Return a peer's module, which is not there when this package is type-checked."""
    return importlib.import_module(name)


def read_config(model: Path) -> dict[str, Any]:
    """Return the checkpoint's config.json."""
    return json.loads((model / "config.json").read_text(encoding="utf-8"))


def pad_right(batch: Texts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return input_ids and attention_mask, both (B, S); the first text is the longest."""
    input_ids = np.full((len(batch), len(batch[0])), PAD_ID, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, token_ids in enumerate(batch):
        input_ids[row, : len(token_ids)] = token_ids
        attention_mask[row, : len(token_ids)] = 1
    return input_ids, attention_mask


def take_last(hidden: NDArray[Any], batch: Texts) -> NDArray[Any]:
    """Return (B, H) of hidden (B, S, H): the state at each text's last token."""
    return hidden[np.arange(len(batch)), [len(token_ids) - 1 for token_ids in batch]]


def physical_cores() -> int:
    """Return how many cores this process may use, SMT siblings counted once."""
    cpus = (Path(f"/sys/devices/system/cpu/cpu{cpu}") for cpu in os.sched_getaffinity(0))
    return len({(cpu / "topology/thread_siblings_list").read_text() for cpu in cpus})


def load_sentence_transformers(model: Path, made: Path, mode: str, room: Room) -> Embed:
    """Return sentence-transformers on torch, as its users load it, but fed with token ids."""
    torch = product("torch")
    loaded = product("sentence_transformers").SentenceTransformer(
        str(model),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": getattr(torch, mode)},
        config_kwargs={"use_cache": False},  # else transformers fills a KV cache nobody reads
    )

    def embed(batch: Texts) -> NDArray[Any]:
        input_ids, attention_mask = map(torch.from_numpy, pad_right(batch))
        with torch.inference_mode():  # the model's own pooling reads the mask
            features = loaded({"input_ids": input_ids, "attention_mask": attention_mask})
        return features["sentence_embedding"].float().numpy()

    return embed


def convert_to_onnx(model: Path, folder: Path, form: str) -> None:
    """Write model.onnx: float32, dynamically quantized, or with int8 weights in blocks.

    By ONNX Runtime's own model builder, whose attention is one fused kernel: torch.onnx.export's
    graph takes as long on one text, a quarter longer on long batches. Blocks of 128 take a tenth
    less time than the default 32, at a cosine 4e-4 lower.
    """
    built = folder / "float32" if form == "dynamic" else folder
    command = [sys.executable, "-I", "-m", "onnxruntime_genai.models.builder", "-i", str(model)]
    command += ["-o", str(built), "-c", str(folder / "cache"), "-e", "cpu"]
    command += ["-p", "int8" if form == "int8" else "fp32"]
    command += ["--extra_options", "exclude_lm_head=true", "block_size=128"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    if form == "dynamic":
        quantization = product("onnxruntime.quantization")
        options = {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
        options |= {"op_types_to_quantize": ["MatMul"], "use_external_data_format": True}
        quantization.quantize_dynamic(built / "model.onnx", folder / "model.onnx", **options)
        shutil.rmtree(built)


def load_onnxruntime(model: Path, made: Path, mode: str, room: Room) -> Embed:
    """Return ONNX Runtime on the graph that convert_to_onnx wrote."""
    runtime, config = product("onnxruntime"), read_config(model)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    session = runtime.InferenceSession(str(made / "model.onnx"), options)
    # The graph is a decoder's: it wants the past of every layer, and gets an empty one.
    past_shape = (config["num_key_value_heads"], 0, config["head_dim"])
    past_names = [one.name for one in session.get_inputs() if one.name.startswith("past_")]

    def embed(batch: Texts) -> NDArray[Any]:
        input_ids, attention_mask = pad_right(batch)
        past = np.zeros((len(batch), *past_shape), dtype=np.float32)
        feeds = dict.fromkeys(past_names, past)
        feeds |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return take_last(session.run(["hidden_states"], feeds)[0], batch)

    return embed


def convert_to_openvino(model: Path, folder: Path, form: str) -> None:
    """Write model.xml and model.bin, weights as float32 or as int8, one scale per channel."""
    torch, openvino = product("torch"), product("openvino")
    qwen3 = product("transformers").Qwen3Model.from_pretrained(
        str(model), dtype=torch.float32, attn_implementation="sdpa"
    )
    forward = qwen3.forward
    # Without any mask the attention is marked causal, and half its work is skipped.
    options = {"attention_mask": {"full_attention": None}, "use_cache": False}
    qwen3.forward = lambda input_ids: forward(input_ids, **options).last_hidden_state
    example = torch.zeros((2, 16), dtype=torch.int64)
    entry = [("input_ids", [-1, -1], openvino.Type.i64)]
    with torch.no_grad():
        graph = openvino.convert_model(qwen3.eval(), input=entry, example_input=example)
    if form == "int8":
        nncf = product("nncf")
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)


def load_openvino(model: Path, made: Path, mode: str, room: Room) -> Embed:
    """Return OpenVINO's CPU plugin on transformers' model without a mask."""
    precision = "f32" if mode == "float32" else "bf16"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if mode == "int8":
        # A fifth less time than the plugin's own 32, at a cosine 2e-4 lower.
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "128"
    graph = product("openvino").Core().compile_model(str(made / "model.xml"), "CPU", options)
    request = graph.create_infer_request()

    def embed(batch: Texts) -> NDArray[Any]:
        return take_last(request.infer({0: pad_right(batch)[0]}, share_outputs=True)[0], batch)

    return embed


def convert_to_gguf(model: Path, folder: Path, form: str) -> None:
    """Write model.gguf of a bfloat16 checkpoint: matrices in the form, norms float32, no words."""
    gguf, config = product("gguf"), read_config(model)
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3", use_temp_file=True)
    for field, key in GGUF_FIELDS.items():
        getattr(writer, f"add_{field}")(config[key])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for path in sorted(model.glob("*.safetensors")):
        for key, tensor in gguf.utility.SafetensorsLocal(path).tensors.items():
            if tensor.dtype != "BF16":
                raise ValueError(f"{path}: {key} is {tensor.dtype}; only BF16 is read")
            # numpy has no bfloat16: it is the upper half of a float32.
            bits = tensor.mmap_bytes().view(np.uint16).astype(np.uint32) << 16
            array = bits.view(np.float32).reshape(tensor.shape)
            name = names.get_name("model." + key.removeprefix("model."), (".weight",))
            kind = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else form.upper()]
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_llama_cpp(model: Path, made: Path, mode: str, room: Room) -> Embed:
    """Return llama.cpp by its C interface: texts of several lengths in one decode, unpadded."""
    lib, width = product("llama_cpp.llama_cpp"), read_config(model)["hidden_size"]
    lib.llama_backend_init()
    path, options = str(made / "model.gguf"), lib.llama_model_default_params()
    loaded = lib.llama_model_load_from_file(path.encode(), options)
    if not loaded:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    options = lib.llama_context_default_params()
    # llama.cpp rounds a sequence's room to 256 as well.
    num_tokens = room[0] * -(-room[1] // 256) * 256
    options.n_ctx = options.n_batch = num_tokens
    options.n_seq_max, options.embeddings = room[0], True
    options.pooling_type = lib.LLAMA_POOLING_TYPE_LAST
    options.n_threads = options.n_threads_batch = physical_cores()
    # One cache for all would let each text attend, masked, over the others' tokens.
    options.kv_unified = False
    context = lib.llama_init_from_model(loaded, options)
    if not context:
        raise RuntimeError(f"llama.cpp gives no context for {num_tokens} tokens")
    packed = lib.llama_batch_init(num_tokens, 0, 1)

    def embed(batch: Texts) -> NDArray[Any]:
        index = 0
        for sequence, token_ids in enumerate(batch):
            for position, token_id in enumerate(token_ids):
                packed.token[index], packed.pos[index] = token_id, position
                packed.n_seq_id[index], packed.seq_id[index][0] = 1, sequence
                packed.logits[index] = 1
                index += 1
        packed.n_tokens = index
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        if lib.llama_decode(context, packed) != 0:
            raise RuntimeError(f"llama.cpp cannot decode {index} tokens")
        rows = [lib.llama_get_embeddings_seq(context, i) for i in range(len(batch))]
        return np.array([np.ctypeslib.as_array(row, (width,)) for row in rows])

    return embed


ONNX = ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnxscript==0.7.2")
PEERS = {
    "sentence-transformers": Peer(
        ("sentence-transformers==6.2.0", *TORCH),
        {"float32": None, "bfloat16": None},
        load_sentence_transformers,
    ),
    "onnxruntime": Peer(
        ("onnxruntime==1.31.1", *ONNX, *TORCH),
        {"float32": "fp32", "int8": "dynamic", "int8-blockwise": "int8"},
        load_onnxruntime,
        convert_to_onnx,
    ),
    "openvino": Peer(
        ("openvino==2026.4.1", "nncf==3.4.0", *TORCH),
        {"float32": "float32", "bfloat16": "float32", "int8": "int8"},
        load_openvino,
        convert_to_openvino,
    ),
    "llama-cpp": Peer(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),
        {"q8_0": "q8_0", "bfloat16": "bf16"},
        load_llama_cpp,
        convert_to_gguf,
    ),
}


def resident_bytes(field: str) -> int:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM), 0 elsewhere than on Linux.

    Not by getrusage: its peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8") if status.is_file() else f"{field}: 0"
    return int(lines.partition(f"{field}:")[2].split()[0]) * 1024


def measure(
    documents: Embed, query: Callable[[Sequence[int]], object], request: dict[str, Any]
) -> dict[str, Any]:
    """Return the seconds of all documents in one call, and of every query by itself.

    The request has lists of token ids ("warm_up", "documents", "queries"), and at "vectors" the
    path where the documents' vectors go, or null.
    """
    documents(request["warm_up"])
    start = time.perf_counter()
    vectors = documents(request["documents"])
    documents_s, peak = time.perf_counter() - start, resident_bytes("VmHWM")
    if request["vectors"] is not None:
        np.save(request["vectors"], vectors)
    queries_s: list[float] = []
    for ids in [*request["queries"][-1:], *request["queries"]]:  # the first one warms up
        start = time.perf_counter()
        query(ids)
        queries_s.append(time.perf_counter() - start)
    return {"documents_s": documents_s, "queries_s": queries_s[1:], "peak_resident_bytes": peak}


def encode(embed: Embed, texts: Texts, batch_size: int) -> NDArray[np.float32]:
    """Return one unit vector per text, (N, H) float32, in the order given."""
    # Neighbours in length share a batch, so that little is padded.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    hidden = np.concatenate([embed([texts[i] for i in batch]) for batch in batches])
    vectors = np.empty(hidden.shape, dtype=np.float32)
    vectors[order] = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    return vectors


def convert_once(peer: Peer, form: str | None, model: Path, folder: Path) -> None:
    """Write the peer's form of the model to `folder`, unless it is there or it has none."""
    if peer.convert is None or form is None or folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")  # what was interrupted must not look made
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    peer.convert(model, partial, form)
    partial.rename(folder)


def main(name: str, mode: str, model: str, folder: str) -> None:
    """Load the model, converted if need be, and answer the request."""
    peer = PEERS[name]
    # Whatever the products print goes to stderr: stdout is the answer's alone.
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    batch_size, texts = request["batch_size"], request["documents"] + request["queries"]
    room = (min(batch_size, len(texts)), max(map(len, texts)))
    convert_once(peer, peer.modes[mode], Path(model), Path(folder))
    start = time.perf_counter()
    embed = peer.load(Path(model), Path(folder), mode, room)
    about: dict[str, Any] = {"load_s": time.perf_counter() - start}
    about["version"] = importlib.metadata.version(peer.requirements[0].partition("==")[0])
    about["resident_bytes"] = resident_bytes("VmRSS")
    measured = measure(
        lambda texts: encode(embed, texts, batch_size), lambda ids: encode(embed, [ids], 1), request
    )
    reply.write(json.dumps(about | measured))
    reply.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
