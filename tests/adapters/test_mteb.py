"""The mteb door against mteb's own Qwen3 wrappers, its mock tasks, and a task over local data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks.sts import AbsTaskSTS
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_implementations.qwen3_models import instruction_template, q3e_instruct_loader
from mteb.models.model_implementations.qwen3_reranker import Qwen3RerankerWrapper
from mteb.results.task_result import TaskError, TaskResult
from mteb.types import PromptType
from scipy.stats import spearmanr
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    Qwen3Encoder,
    Qwen3Reranker,
    shared_encoder,
)
from qwen3_embedding_integrations import mteb as mteb_door
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.mteb import MTEBEncoder, MTEBReranker, run_benchmark
from qwen3_embedding_integrations.mteb.benchmark import ALIASES

TINY = Path(mteb_door.__file__).parents[1] / "tiny"
TEXTS = [
    "What is the capital of France?",
    "房东要卖房，租客能优先买吗？",
    "def add(a, b):\n  ",
    "",
    " x",
]
PAIRS = [
    ("花呗怎么还款", "花呗如何还钱", 1),
    ("花呗怎么还款", "借呗利息是多少", 0),
    ("密码忘了怎么办", "忘记密码如何找回", 1),
    ("密码忘了怎么办", "如何修改头像", 0),
    ("怎么提高额度", "额度怎么才能提升", 1),
    ("怎么提高额度", "为什么扣我手续费", 0),
    ("可以提前还款吗", "能不能提前把钱还上", 1),
    ("可以提前还款吗", "账单日是哪一天", 0),
]
ROLES = [None, PromptType.query, PromptType.document]


@pytest.fixture(scope="module")
def encoder() -> Qwen3Encoder:
    """Return `tiny`, which embeds empty texts as well; do not close it."""
    return shared_encoder(EncoderConfig(model="tiny", dtype="float32", on_empty="embed"))


@pytest.fixture
def afqmc() -> Iterator[AbsTaskSTS]:
    """Yield the benchmark's own task AFQMC, over the pairs above in place of the hub's."""
    tasks = mteb.get_benchmark("MTEB(cmn, v1)").tasks
    task: Any = next(task for task in tasks if task.metadata.name == "AFQMC")
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*PAIRS, strict=True), strict=True))
    task.dataset = {"validation": Dataset.from_dict(columns)}
    task.data_loaded = True
    yield task
    task.dataset, task.data_loaded = None, False


def run(*arguments: object) -> tuple[int, str]:
    """Run `qwen3-embedding mteb` in this process; return its status and what it printed."""
    done = CliRunner().invoke(app, ["mteb", *map(str, arguments), "--model", "tiny"])
    return done.exit_code, done.stdout


def loader(**columns: list[str]) -> Any:
    return DataLoader(Dataset.from_dict(columns), batch_size=2)


# mteb's own: a tensor copied by the wrong function, a metric over two samples.
@pytest.mark.filterwarnings(
    "ignore:To copy construct from a tensor:UserWarning",
    "ignore:Precision is ill-defined:sklearn.exceptions.UndefinedMetricWarning",
)
def test_the_encoder_passes_every_mock_task(encoder: Qwen3Encoder) -> None:
    """All 28 text tasks of mteb's own check of an implementation run."""
    mock = mteb.mock_run(MTEBEncoder(encoder))
    tried = {name: result for name, result in mock.items() if result is not None}
    failed = {name: result.exception for name, result in tried.items() if type(result) is TaskError}
    assert not failed
    assert len(tried) == 28


def test_the_reranker_passes_what_has_candidates(reranker: Qwen3Reranker) -> None:
    """Of the nine tasks a cross-encoder is given, the four with candidates run; mteb refuses five.

    Those are retrieval without a first stage: there is nothing yet to put in order.
    """
    mock = mteb.mock_run(MTEBReranker(reranker))
    passed = {name for name, result in mock.items() if isinstance(result, TaskResult)}
    failed = {name: result.exception for name, result in mock.items() if type(result) is TaskError}
    assert passed == {
        "MockRerankingTask",
        "MockMultilingualRerankingTask",
        "MockInstructionReranking",
        "MockMultilingualInstructionReranking",
    }
    assert len(failed) == 5
    assert set(failed.values()) == {
        "CrossEncoder search requires top_ranked documents for reranking."
    }


@pytest.mark.filterwarnings(
    "ignore:Prompt type .* not found in task metadata:UserWarning",
    "ignore:No prompt found on the abstask class of task:UserWarning",
)
def test_instructions_are_those_of_mtebs_wrapper(encoder: Qwen3Encoder) -> None:
    """For every text task mteb has, in every role, the prompt equals the in-tree wrapper's."""
    ours = MTEBEncoder(encoder)
    theirs = object.__new__(InstructSentenceTransformerModel)  # its prompts need no weights
    theirs.instruction_template = instruction_template
    seen = set()
    for task in mteb.get_tasks(modalities=["text"], exclusive_modality_filter=True):
        for role in ROLES:
            wanted = theirs.get_task_instruction(task.metadata, role)
            instruction = ours.instruction_for(task.metadata, role)
            assert ("" if instruction is None else query_prompt(instruction)) == wanted
            seen.add((task.metadata.type, role, wanted != ""))
    assert len({kind for kind, _, _ in seen}) >= 11
    assert not any(has_prompt for _, role, has_prompt in seen if role == PromptType.document)


@pytest.mark.filterwarnings("ignore:Prompt type .* not found in task metadata:UserWarning")
def test_vectors_are_those_of_mtebs_wrapper(encoder: Qwen3Encoder) -> None:
    """The same weights in mteb's own wrapper and here give the same vectors for each type and role.

    So the texts that reach the tokenizer are the same: one space more in the prompt moves these
    vectors by a hundred times the tolerance.
    """
    theirs: Any = q3e_instruct_loader(
        str(TINY), revision=None, device="cpu", model_kwargs={"dtype": "float32"}
    )
    ours = MTEBEncoder(encoder)
    for name in (
        "AFQMC", "Ocnli", "TNews", "CLSClusteringS2S", "T2Reranking", "CovidRetrieval",
        "BUCC.v2", "Core17InstructionRetrieval", "SummEvalSummarization.v2", "CosQA",
    ):  # fmt: skip
        metadata = mteb.get_task(name).metadata
        for role in ROLES:
            place = {"hf_split": "test", "hf_subset": "default", "prompt_type": role}
            wanted = theirs.encode(loader(text=TEXTS), task_metadata=metadata, **place)
            found = ours.encode(loader(text=TEXTS), task_metadata=metadata, **place)
            np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=f"{name} {role}")
    exact = encoder.encode_queries(TEXTS[:1], instruction=WEB_SEARCH)
    near = encoder.encode_queries(TEXTS[:1], instruction=WEB_SEARCH + " ")
    assert np.abs(near - exact).max() > 1e-3


@pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`=`True`:UserWarning")
def test_scores_are_those_of_mtebs_reranker(
    reranker_checkpoint: Path, reranker: Qwen3Reranker
) -> None:
    """Pairs with and without a task's instructions get the scores of mteb's own reranker."""
    theirs: Any = Qwen3RerankerWrapper(str(reranker_checkpoint), device="cpu", dtype="float32")
    queries, documents, _ = (list(column) for column in zip(*PAIRS, strict=True))
    instructions = ["Find duplicates", "Find answers"] * 4
    place = {"hf_split": "test", "hf_subset": "default"}
    metadata = mteb.get_task("T2Reranking").metadata
    for columns in ({"text": queries}, {"text": queries, "instruction": instructions}):
        asked = [loader(**columns), loader(text=documents)]
        wanted = theirs.predict(*asked, task_metadata=metadata, **place, show_progress_bar=False)
        found = MTEBReranker(reranker).predict(*asked, task_metadata=metadata, **place)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_task_over_local_data(afqmc: AbsTaskSTS, tmp_path: Path) -> None:
    """The verb's score equals one computed apart; a second run reads it; other options do not."""
    encoder = shared_encoder(EncoderConfig(model="tiny", on_empty="embed"))
    instruction = "Retrieve semantically similar text."  # mteb 2.26's for STS, on both sides
    left, right, labels = zip(*PAIRS, strict=True)
    cosines = np.sum(
        encoder.encode_queries(left, instruction=instruction)
        * encoder.encode_queries(right, instruction=instruction),
        axis=1,
    )
    wanted = 100 * spearmanr(labels, cosines)[0]

    place = ["C-MTEB", "--task", "AFQMC", "--output", tmp_path]
    status, printed = run(*place, "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(printed)["rows"]}
    assert rows["AFQMC"]["score"] == pytest.approx(wanted, abs=1e-6)
    assert rows["STS"]["published"] == [54.52, 61.26, 63.53]
    assert (rows["STS"]["num_done"], rows["STS"]["num_tasks"]) == (1, 7)

    num_texts = encoder.stats().texts
    status, printed = run(*place)
    assert status == 0
    assert encoder.stats().texts == num_texts, "what is there must not be computed again"
    assert f"({wanted:.2f})" in printed, "a part of the benchmark stands in brackets"
    assert {"66.33", "72.27", "73.84"} <= set(printed.split())
    narrow = shared_encoder(EncoderConfig(model="tiny", on_empty="embed", dimensions=64))
    assert run(*place, "--dimensions", 64)[0] == 0
    assert narrow.stats().texts > 0, "another width is another result"


def test_a_task_that_fails_is_named_and_tried_again(
    afqmc: AbsTaskSTS, encoder: Qwen3Encoder, tmp_path: Path
) -> None:
    """Without its data a task is a failure; the others are kept, and it alone is run again."""
    data = afqmc.dataset
    afqmc.dataset, afqmc.data_loaded = None, False
    mine = mteb.Benchmark("mine", tasks=[afqmc, *other_tasks(data)])
    scores = run_benchmark(encoder, mine, output=tmp_path)
    assert set(scores.failures) == {"AFQMC"}
    assert [row.name for row in scores.rows if row.num_done] == [
        "Mean (Task)", "Mean (TaskType)", "STS", "LCQMC",
    ]  # fmt: skip
    assert not scores.published_models
    num_texts = encoder.stats().texts
    afqmc.dataset, afqmc.data_loaded = data, True
    scores = run_benchmark(encoder, mine, output=tmp_path)
    assert not scores.failures
    assert encoder.stats().texts - num_texts == 2 * 8


def other_tasks(data: Any) -> list[Any]:
    """Return the task LCQMC over the same data."""
    task: Any = mteb.get_task("LCQMC")
    task.dataset = {split: data["validation"] for split in task.eval_splits}
    task.data_loaded = True
    return [task]


def test_published_scores_agree_with_each_other() -> None:
    """All four have scores; rows are named as mteb names them, and means are of their parts."""
    path = Path(mteb_door.__file__).parent / "published.json"
    published = json.loads(path.read_text("utf-8"))["benchmarks"]
    promised = ["C-MTEB", "MTEB(eng, v2)", "MTEB(Multilingual)", "MTEB(Code)"]
    assert {mteb.get_benchmark(ALIASES.get(name, name)).name for name in promised} == {*published}
    for name, table in published.items():
        tasks = mteb.get_benchmark(name).tasks
        kinds = {task.metadata.type for task in tasks}
        rows = {key: values for key, values in table["scores"].items() if "Mean" not in key}
        names = kinds if len(kinds) > 1 else {task.metadata.name for task in tasks}
        assert set(rows) == names
        mean = table["scores"]["Mean (TaskType)" if len(kinds) > 1 else "Mean (Task)"]
        np.testing.assert_allclose(np.mean([*rows.values()], axis=0), mean, atol=0.02)


def test_what_cannot_be_run_is_refused(encoder: Qwen3Encoder, tiny: Qwen3Encoder) -> None:
    """Unknown names, options that change vectors, an encoder that refuses empty texts."""
    with pytest.raises(ConfigError, match="Did you mean: MTEB"):
        run_benchmark(encoder, "MTEB(cmn, v9)")
    with pytest.raises(ConfigError, match="near: AFQMC"):
        run_benchmark(encoder, "CMTEB", tasks=["AFQMCC"])
    with pytest.raises(ConfigError, match="on_empty"):
        MTEBEncoder(tiny)
    place: Any = {"task_metadata": mteb.get_task("AFQMC").metadata}
    place |= {"hf_split": "test", "hf_subset": "default"}
    with pytest.raises(TypeError, match="precision"):
        MTEBEncoder(encoder).encode(loader(text=TEXTS), **place, precision="int8")
