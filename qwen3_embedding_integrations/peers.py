"""Runs one other engine on token ids: the worker that `bench --against` starts.

It is started by path, `VENV/bin/python peers.py PEER MODEL_FOLDER WORK_FOLDER MODE`, in an
environment that holds PEERS[PEER].requirements and not this package. Both sides speak JSON lines:
once loaded it writes {"ready": true, ...}, then it answers each {"ids", "batch_size", "vectors"} of
stdin with {"seconds", "peak_resident_bytes"}, until stdin ends. WORK_FOLDER keeps what a peer made
of this one model; making it is not counted. The package reads PEERS alone from here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# <|endoftext|>. What stands behind a text's last token is never seen by it, the attention being
# causal: on the right any id pads, and an engine without a mask is exact, with RoPE from 0.
PAD_ID = 151643

TORCH = ("torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "numpy==2.4.6")


class Engine:
    """One peer: converted once into a folder, loaded from there, then fed batches."""

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        raise NotImplementedError

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write into the empty folder what is loaded of the model; nothing, by default."""

    def prepare(self, texts: Sequence[Sequence[int]], batch_size: int) -> None:
        """Make room for these batches, uncounted as a server does it once; nothing, by default."""

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Return the last token's hidden state of each text, (B, H), given longest text first."""
        raise NotImplementedError


def product(name: str) -> Any:
    """Return the peer's module, which a type checker of this package cannot know."""
    return importlib.import_module(name)


def pad_right(batch: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return input_ids (B, S) and attention_mask (B, S); the first text is the longest."""
    input_ids = np.full((len(batch), len(batch[0])), PAD_ID, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, token_ids in enumerate(batch):
        input_ids[row, : len(token_ids)] = token_ids
        attention_mask[row, : len(token_ids)] = 1
    return input_ids, attention_mask


def take_last(hidden: NDArray[Any], batch: Sequence[Sequence[int]]) -> NDArray[Any]:
    """Return (B, H) of hidden (B, S, H): the state at each text's last token."""
    return hidden[np.arange(len(batch)), [len(token_ids) - 1 for token_ids in batch]]


def physical_cores() -> int:
    """Return how many cores this process may use, SMT siblings counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


class SentenceTransformers(Engine):
    """sentence-transformers on torch, as its users load it, but fed with token ids."""

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        self.torch = product("torch")
        # Without use_cache=False, transformers fills a KV cache that nobody reads.
        self.model = product("sentence_transformers").SentenceTransformer(
            str(model),
            device="cpu",
            model_kwargs={"dtype": getattr(self.torch, mode)},
            config_kwargs={"use_cache": False},
            local_files_only=True,
        )

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Return (B, H) float32; the model's own pooling reads the mask."""
        input_ids, attention_mask = map(self.torch.from_numpy, pad_right(batch))
        with self.torch.inference_mode():
            features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return features["sentence_embedding"].float().numpy()


class OnnxRuntime(Engine):
    """ONNX Runtime on the graph of its own model builder, whose attention is one fused kernel."""

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        runtime = product("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = physical_cores()
        self.session = runtime.InferenceSession(
            str(made / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        # The graph is a decoder's: it wants the past of every layer, and gets an empty one.
        self.past_shape = (config["num_key_value_heads"], 0, config["head_dim"])
        names = [entry.name for entry in self.session.get_inputs()]
        self.past_names = [name for name in names if name.startswith("past_key_values.")]

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write model.onnx: as float32, with blockwise int8 weights, or dynamically quantized."""
        blockwise = form == "int8-blockwise"
        # torch.onnx.export's graph takes as long on one text and a quarter longer on batches.
        # Blocks of 128 run a fifth faster than the default 32, for a cosine lower by 4e-4.
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model)]
        command += ["-o", str(folder), "-c", str(folder / "cache"), "-e", "cpu"]
        command += ["-p", "int8" if blockwise else "fp32"]
        command += ["--extra_options", "exclude_lm_head=true", "block_size=128"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        if form != "int8":
            return
        plain = folder / "float32"
        plain.mkdir()
        for path in list(folder.glob("model.onnx*")):
            path.rename(plain / path.name)
        quantization = product("onnxruntime.quantization")
        options = {"per_channel": True, "reduce_range": False, "use_external_data_format": True}
        options |= {"op_types_to_quantize": ["MatMul"], "weight_type": quantization.QuantType.QInt8}
        quantization.quantize_dynamic(plain / "model.onnx", folder / "model.onnx", **options)
        shutil.rmtree(plain)

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Return (B, H) float32."""
        input_ids, attention_mask = pad_right(batch)
        past = np.zeros((len(batch), *self.past_shape), dtype=np.float32)
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        feeds |= dict.fromkeys(self.past_names, past)
        return take_last(self.session.run(["hidden_states"], feeds)[0], batch)


class OpenVino(Engine):
    """OpenVINO's CPU plugin on transformers' model without a mask."""

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if mode == "float32" else "bf16",
        }
        if mode == "int8":
            # A fifth faster than the plugin's own 32, for a cosine lower by 2e-4.
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "128"
        core = product("openvino").Core()
        self.request = core.compile_model(
            str(made / "model.xml"), "CPU", options
        ).create_infer_request()

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write model.xml and model.bin, weights as float32 or as int8, one scale per channel."""
        torch, openvino = product("torch"), product("openvino")
        qwen3 = product("transformers").Qwen3Model.from_pretrained(
            str(model), dtype=torch.float32, attn_implementation="sdpa"
        )

        class LastHidden(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qwen3 = qwen3

            def forward(self, input_ids: Any) -> Any:
                # No mask at all lets the attention be marked causal and skip half its work.
                mask = {"full_attention": None}
                outputs = self.qwen3(input_ids=input_ids, attention_mask=mask, use_cache=False)
                return outputs.last_hidden_state

        example = torch.zeros((2, 16), dtype=torch.int64)
        entry = [("input_ids", [-1, -1], openvino.Type.i64)]
        with torch.no_grad():
            graph = openvino.convert_model(LastHidden().eval(), input=entry, example_input=example)
        if form == "int8":
            nncf = product("nncf")
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Return (B, H) float32."""
        input_ids, _ = pad_right(batch)
        return take_last(self.request.infer({0: input_ids}, share_outputs=True)[0], batch)


def read_float32(tensor: Any) -> NDArray[np.float32]:
    """Return one of gguf's safetensors tensors as float32; numpy has no bfloat16."""
    data = tensor.mmap_bytes()
    if tensor.dtype == "BF16":
        array = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        array = data.view({"F16": np.float16, "F32": np.float32}[tensor.dtype])
    return array.reshape(tensor.shape).astype(np.float32, copy=False)


GGUF_FIELDS = {  # gguf's names and config.json's
    **{"block_count": "num_hidden_layers", "context_length": "max_position_embeddings"},
    **{"embedding_length": "hidden_size", "feed_forward_length": "intermediate_size"},
    **{"head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads"},
    **{"key_length": "head_dim", "value_length": "head_dim"},
    **{"layer_norm_rms_eps": "rms_norm_eps", "vocab_size": "vocab_size"},
}


class LlamaCpp(Engine):
    """llama.cpp through its C interface: several texts of different lengths in one decode."""

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        self.lib = product("llama_cpp").llama_cpp
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(
            str(made / "model.gguf").encode(), self.lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("llama.cpp cannot load the GGUF file")
        self.width = self.lib.llama_model_n_embd(self.model)
        self.room = (0, 0)
        self.context: Any = None

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write model.gguf: matrices in the form, norms as float32, no tokenizer."""
        gguf = product("gguf")
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
        writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3", use_temp_file=True)
        for field, name in GGUF_FIELDS.items():
            getattr(writer, f"add_{field}")(config[name])
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_tokenizer_model("none")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
        for path in sorted(model.glob("*.safetensors")):
            for name, tensor in gguf.utility.SafetensorsLocal(path).tensors.items():
                array = read_float32(tensor)
                kind = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else form.upper()]
                there = names.get_name("model." + name.removeprefix("model."), (".weight",))
                writer.add_tensor(there, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def prepare(self, texts: Sequence[Sequence[int]], batch_size: int) -> None:
        """Build the context anew where this one lacks sequences or tokens for each of them."""
        room = (min(batch_size, len(texts)), max(map(len, texts)))
        if room[0] <= self.room[0] and room[1] <= self.room[1]:
            return
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
        self.room = (max(room[0], self.room[0]), -(-max(room[1], self.room[1]) // 256) * 256)
        num_tokens = self.room[0] * self.room[1]
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = num_tokens
        options.n_seq_max = self.room[0]
        options.n_threads = options.n_threads_batch = physical_cores()
        options.embeddings = True
        options.pooling_type = self.lib.LLAMA_POOLING_TYPE_LAST
        # One cache for all would let each text attend, masked, over all others' tokens.
        options.kv_unified = False
        self.context = self.lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp gives no context for {num_tokens} tokens")
        self.batch = self.lib.llama_batch_init(num_tokens, 0, 1)

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Return (B, H) float32; nothing is padded."""
        packed, num_tokens = self.batch, 0
        for sequence, token_ids in enumerate(batch):
            end = num_tokens + len(token_ids)
            packed.token[num_tokens:end] = token_ids
            packed.pos[num_tokens:end] = range(len(token_ids))
            for index in range(num_tokens, end):
                packed.n_seq_id[index] = packed.logits[index] = 1
                packed.seq_id[index][0] = sequence
            num_tokens = end
        packed.n_tokens = num_tokens
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        if self.lib.llama_decode(self.context, packed) != 0:
            raise RuntimeError(f"llama.cpp cannot decode {num_tokens} tokens")
        vectors = [self.lib.llama_get_embeddings_seq(self.context, i) for i in range(len(batch))]
        return np.array([np.ctypeslib.as_array(row, (self.width,)) for row in vectors])


class Peer(NamedTuple):
    """What the environment of a peer holds, the product first, and what it can run there."""

    requirements: tuple[str, ...]
    modes: dict[str, str | None]  # to what convert() makes for it; None: nothing
    engine: type[Engine]


BUILDER = ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnxscript==0.7.2")
PEERS = {
    "sentence-transformers": Peer(
        ("sentence-transformers==6.2.0", *TORCH),
        {"float32": None, "bfloat16": None},
        SentenceTransformers,
    ),
    "onnxruntime": Peer(
        ("onnxruntime==1.31.1", *BUILDER, *TORCH),
        {"float32": "float32", "int8": "int8", "int8-blockwise": "int8-blockwise"},
        OnnxRuntime,
    ),
    "openvino": Peer(
        ("openvino==2026.4.1", "nncf==3.4.0", *TORCH),
        {"float32": "float32", "bfloat16": "float32", "int8": "int8"},
        OpenVino,
    ),
    "llama-cpp": Peer(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),
        {"q8_0": "q8_0", "bfloat16": "bf16"},
        LlamaCpp,
    ),
}


def make(peer: Peer, version: str, model: Path, work: Path, mode: str) -> Path:
    """Return the folder of what the peer loads, made by a process of its own where it lacks."""
    form = peer.modes[mode]
    folder = work / f"{peer.engine.__name__}-{version}-{form}"
    if form is None or folder.exists():
        return folder
    # What is interrupted must not look made.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Conversions hold the model several times over: that is not the engine's memory.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=peer.engine.convert, args=(model, partial, form))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the conversion to {form} failed; see above")
    return partial.rename(folder)


def resident_bytes() -> tuple[int, int]:
    """Return this process's resident memory now and at its peak, in bytes; 0 if unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0, 0
    lines = [line.split() for line in status.read_text().splitlines()]
    kibibytes = {words[0]: int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
    return kibibytes["VmRSS:"] * 1024, kibibytes["VmHWM:"] * 1024


def encode(engine: Engine, texts: Sequence[Sequence[int]], batch_size: int) -> NDArray[np.float32]:
    """Return one unit vector per text, (N, H) float32, in the order given."""
    # Neighbours in length share a batch, so that little is padded.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    parts: list[NDArray[Any]] = []
    for start in range(0, len(order), batch_size):
        parts.append(engine.embed([texts[index] for index in order[start : start + batch_size]]))
    vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, float]:
    """Return how long one request took, and save its vectors where it says."""
    engine.prepare(request["ids"], request["batch_size"])
    start = time.perf_counter()
    vectors = encode(engine, request["ids"], request["batch_size"])
    seconds = time.perf_counter() - start
    if request["vectors"] is not None:
        np.save(request["vectors"], vectors)
    return {"seconds": seconds, "peak_resident_bytes": resident_bytes()[1]}


def serve(name: str, model: Path, work: Path, mode: str) -> None:
    """Load the peer, say so, and answer stdin line by line."""
    # Whatever the products print goes to stderr; the protocol keeps the only way to stdout.
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    peer = PEERS[name]
    version = importlib.metadata.version(peer.requirements[0].partition("==")[0])
    made = make(peer, version, model, work, mode)
    start = time.perf_counter()
    engine = peer.engine(model, made, mode)
    ready = {"ready": True, "peer": name, "mode": mode, "version": version}
    ready |= {"load_s": time.perf_counter() - start, "resident_bytes": resident_bytes()[0]}
    replies.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps(answer(engine, json.loads(line))) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 at the end of stdin, 1 after a failure, 2 for wrong arguments."""
    if len(arguments) != 4 or arguments[0] not in PEERS:
        allowed = ", ".join(PEERS)
        sys.stderr.write(f"usage: peers.py PEER MODEL_FOLDER WORK_FOLDER MODE; PEER: {allowed}\n")
        return 2
    name, model, work, mode = arguments
    if mode not in PEERS[name].modes:
        sys.stderr.write(f"{name} has no mode {mode!r}, only {', '.join(PEERS[name].modes)}\n")
        return 2
    try:
        serve(name, Path(model).absolute(), Path(work).absolute(), mode)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"{name} in mode {mode} failed: {type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
