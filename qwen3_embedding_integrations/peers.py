"""Runs one other engine on token ids: the worker that `bench --against` starts.

It is started by path, `VENV/bin/python peers.py PEER MODEL_FOLDER WORK_FOLDER MODE`, in a virtual
environment that holds PEERS[PEER].requirements and not this package, on Linux. Both sides speak
JSON lines: once loaded it writes {"ready": true, ...}, then it answers each {"ids", "batch_size",
"vectors"} of stdin with {"seconds", "peak_resident_bytes"}, until stdin ends. WORK_FOLDER, one per
model, keeps what a peer made of it; making it is not counted.
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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[Sequence[int]]
TORCH = ("torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "numpy==2.4.6")
# Causal attention never sees what stands behind a text's last token: on the right any id pads, so
# an engine without a mask is exact too. This one is in every vocabulary.
PAD_ID = 0


class Engine(ABC):
    """One peer: converted once into a folder, loaded from there, then fed batches."""

    requirements: ClassVar[tuple[str, ...]]  # the product first
    modes: ClassVar[dict[str, str | None]]  # and the form convert() makes for each; None: none

    @abstractmethod
    def __init__(self, model: Path, made: Path, mode: str) -> None: ...

    @staticmethod  # noqa: B027  # a hook
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write into the empty folder what is loaded; nothing where that is the model itself."""

    def prepare(self, texts: Texts, batch_size: int) -> None:  # noqa: B027  # a hook
        """Make room for these batches; not counted, as a server does it once."""

    @abstractmethod
    def embed(self, batch: Texts) -> NDArray[Any]:
        """Return the hidden state of each text's last token, (B, H); the longest comes first."""


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


class SentenceTransformers(Engine):
    """sentence-transformers on torch, as its users load it, but fed with token ids."""

    requirements = ("sentence-transformers==6.2.0", *TORCH)
    modes: ClassVar = {"float32": None, "bfloat16": None}

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        self.torch = product("torch")
        # Without use_cache=False, transformers fills a KV cache that nobody reads.
        options = {"config_kwargs": {"use_cache": False}, "local_files_only": True}
        options |= {"model_kwargs": {"dtype": getattr(self.torch, mode)}, "device": "cpu"}
        self.model = product("sentence_transformers").SentenceTransformer(str(model), **options)

    def embed(self, batch: Texts) -> NDArray[Any]:
        """Return (B, H) float32; the model's own pooling reads the mask."""
        input_ids, attention_mask = map(self.torch.from_numpy, pad_right(batch))
        with self.torch.inference_mode():
            features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return features["sentence_embedding"].float().numpy()


class OnnxRuntime(Engine):
    """ONNX Runtime on the graph of its own model builder, whose attention is one fused kernel."""

    builder = ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnxscript==0.7.2")
    requirements = ("onnxruntime==1.31.1", *builder, *TORCH)
    modes: ClassVar = {"float32": "fp32", "int8": "dynamic", "int8-blockwise": "int8"}

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        runtime, config = product("onnxruntime"), read_config(model)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = physical_cores()
        self.session = runtime.InferenceSession(str(made / "model.onnx"), options)
        # The graph is a decoder's: it wants the past of every layer, and gets an empty one.
        self.past_shape = (config["num_key_value_heads"], 0, config["head_dim"])
        names = [entry.name for entry in self.session.get_inputs()]
        self.past_names = [name for name in names if name.startswith("past_key_values.")]

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write model.onnx: float32, dynamically quantized, or with int8 weights in blocks."""
        built = folder / "float32" if form == "dynamic" else folder
        # torch.onnx.export's graph takes as long on one text, a quarter longer on long batches.
        # Blocks of 128 take a tenth less time than the default 32, at a cosine 4e-4 lower.
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model)]
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

    def embed(self, batch: Texts) -> NDArray[Any]:
        """Return (B, H) float32."""
        input_ids, attention_mask = pad_right(batch)
        past = np.zeros((len(batch), *self.past_shape), dtype=np.float32)
        feeds = dict.fromkeys(self.past_names, past)
        feeds |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return take_last(self.session.run(["hidden_states"], feeds)[0], batch)


class OpenVino(Engine):
    """OpenVINO's CPU plugin on transformers' model without a mask."""

    requirements = ("openvino==2026.4.1", "nncf==3.4.0", *TORCH)
    modes: ClassVar = {"float32": "float32", "bfloat16": "float32", "int8": "int8"}

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        precision = "f32" if mode == "float32" else "bf16"
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if mode == "int8":
            # A fifth less time than the plugin's own 32, at a cosine 2e-4 lower.
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "128"
        core = product("openvino").Core()
        graph = core.compile_model(str(made / "model.xml"), "CPU", options)
        self.request = graph.create_infer_request()

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
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

    def embed(self, batch: Texts) -> NDArray[Any]:
        """Return (B, H) float32."""
        hidden = self.request.infer({0: pad_right(batch)[0]}, share_outputs=True)[0]
        return take_last(hidden, batch)


class LlamaCpp(Engine):
    """llama.cpp through its C interface: texts of different lengths in one decode, unpadded."""

    requirements = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6")
    modes: ClassVar = {"q8_0": "q8_0", "bfloat16": "bf16"}

    def __init__(self, model: Path, made: Path, mode: str) -> None:
        self.lib, self.width = product("llama_cpp.llama_cpp"), read_config(model)["hidden_size"]
        self.lib.llama_backend_init()
        path, options = str(made / "model.gguf"), self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.context: Any = None
        self.num_sequences = self.max_seqlen = 0

    @staticmethod
    def convert(model: Path, folder: Path, form: str) -> None:
        """Write model.gguf: matrices in the form, norms as float32, no tokenizer."""
        script = ["-P", str(Path(__file__).with_name("gguf_file.py"))]
        command = [sys.executable, *script, str(model), str(folder / "model.gguf"), form]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def prepare(self, texts: Texts, batch_size: int) -> None:
        """Build the context anew where this one lacks sequences, or tokens in each of them."""
        num_sequences, max_seqlen = min(batch_size, len(texts)), max(map(len, texts))
        if num_sequences <= self.num_sequences and max_seqlen <= self.max_seqlen:
            return
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
        self.num_sequences = max(num_sequences, self.num_sequences)
        # llama.cpp rounds a sequence's room to 256 as well.
        self.max_seqlen = max(-(-max_seqlen // 256) * 256, self.max_seqlen)
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = num_tokens = self.num_sequences * self.max_seqlen
        options.n_seq_max, options.embeddings = self.num_sequences, True
        options.pooling_type = self.lib.LLAMA_POOLING_TYPE_LAST
        options.n_threads = options.n_threads_batch = physical_cores()
        # One cache for all would let each text attend, masked, over the others' tokens.
        options.kv_unified = False
        self.context = self.lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp gives no context for {num_tokens} tokens")
        self.batch = self.lib.llama_batch_init(num_tokens, 0, 1)

    def embed(self, batch: Texts) -> NDArray[Any]:
        """Return (B, H) float32."""
        packed, index = self.batch, 0
        for sequence, token_ids in enumerate(batch):
            for position, token_id in enumerate(token_ids):
                packed.token[index], packed.pos[index] = token_id, position
                packed.n_seq_id[index], packed.seq_id[index][0] = 1, sequence
                packed.logits[index] = 1
                index += 1
        packed.n_tokens = index
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        if self.lib.llama_decode(self.context, packed) != 0:
            raise RuntimeError(f"llama.cpp cannot decode {index} tokens")
        rows = [self.lib.llama_get_embeddings_seq(self.context, i) for i in range(len(batch))]
        return np.array([np.ctypeslib.as_array(row, (self.width,)) for row in rows])


ENGINES: tuple[type[Engine], ...] = (SentenceTransformers, OnnxRuntime, OpenVino, LlamaCpp)
NAMES = ("sentence-transformers", "onnxruntime", "openvino", "llama-cpp")
PEERS: dict[str, type[Engine]] = dict(zip(NAMES, ENGINES, strict=True))


def make(name: str, model: Path, folder: Path, form: str) -> None:
    """Convert the model for a peer into the folder, unless it is there."""
    if folder.exists():
        return
    # What was interrupted must not look made.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # In a process of its own: a conversion holds the model several times over.
    target, arguments = PEERS[name].convert, (model, partial, form)
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the conversion to {form} failed")
    partial.rename(folder)


def resident_bytes(field: str) -> int:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM)."""
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def encode(engine: Engine, texts: Texts, batch_size: int) -> NDArray[np.float32]:
    """Return one unit vector per text, (N, H) float32, in the order given."""
    # Neighbours in length share a batch, so that little is padded.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    hidden = np.concatenate([engine.embed([texts[i] for i in batch]) for batch in batches])
    vectors = np.empty(hidden.shape, dtype=np.float32)
    vectors[order] = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    return vectors


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Return how long one request took, and save its vectors where it says."""
    engine.prepare(request["ids"], request["batch_size"])
    start = time.perf_counter()
    vectors = encode(engine, request["ids"], request["batch_size"])
    seconds = time.perf_counter() - start
    if request["vectors"] is not None:
        np.save(request["vectors"], vectors)
    return {"seconds": seconds, "peak_resident_bytes": resident_bytes("VmHWM")}


def serve(name: str, model: Path, work: Path, mode: str) -> None:
    """Load the peer, say so, and answer stdin line by line."""
    # Whatever the products print goes to stderr: stdout is the protocol's alone.
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    version = importlib.metadata.version(PEERS[name].requirements[0].partition("==")[0])
    form = PEERS[name].modes[mode]
    made = work / f"{name}-{version}-{form}"
    if form is not None:
        make(name, model, made, form)
    start = time.perf_counter()
    engine = PEERS[name](model, made, mode)
    ready = {"ready": True, "peer": name, "mode": mode, "version": version}
    ready |= {"load_s": time.perf_counter() - start, "resident_bytes": resident_bytes("VmRSS")}
    replies.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps(answer(engine, json.loads(line))) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 at the end of stdin, 1 after a failure, 2 for wrong arguments."""
    modes = {name: ", ".join(peer.modes) for name, peer in PEERS.items()}
    name, model, work, mode = arguments if len(arguments) == 4 else ("", "", "", "")
    if name not in PEERS or mode not in PEERS[name].modes:
        sys.stderr.write("usage: peers.py PEER MODEL_FOLDER WORK_FOLDER MODE\n")
        sys.stderr.writelines(f"PEER {name}: MODE {allowed}\n" for name, allowed in modes.items())
        return 2
    try:
        serve(name, Path(model).absolute(), Path(work).absolute(), mode)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"{name}, {mode}: {type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
