"""mteb: a task of your own, scored as mteb scores the public ones, and resumed.

Public benchmarks, which mteb downloads: `qwen3-embedding mteb C-MTEB --task AFQMC`.
"""

from tempfile import TemporaryDirectory

import mteb
from datasets import Dataset
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from qwen3_embedding_integrations import EncoderConfig, shared_encoder
from qwen3_embedding_integrations.mteb import run_benchmark

PAIRS = [
    ("花呗怎么还款", "花呗如何还钱", 1.0),
    ("花呗怎么还款", "怎么修改头像", 0.0),
    ("密码忘了怎么办", "忘记密码如何找回", 1.0),
    ("密码忘了怎么办", "账单日是哪一天", 0.0),
    ("Can I get my money back?", "How do refunds work?", 1.0),
    ("Can I get my money back?", "The screen is too bright at night", 0.0),
]


class SupportQuestions(AbsTaskSTS):
    """Questions of the support desk, two of which ask the same or do not."""

    metadata = TaskMetadata(
        name="SupportQuestions",
        description="Pairs of questions, 1 where they ask the same.",
        dataset={"path": "local/support-questions", "revision": "1"},  # for mteb's own records
        type="STS",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["zho-Hans", "eng-Latn"],
        main_score="cosine_spearman",
        prompt="Retrieve semantically similar questions",  # read before both texts
    )
    min_score, max_score = 0.0, 1.0

    def load_data(self, num_proc: int | None = None, **_: object) -> None:
        """Set the pairs in place of what mteb would download."""
        first, second, score = zip(*PAIRS, strict=True)
        columns = {"sentence1": first, "sentence2": second, "score": score}
        self.dataset = {"test": Dataset.from_dict(columns)}
        self.data_loaded = True


# mteb gives empty texts too, in the public datasets: they are embedded, not refused.
encoder = shared_encoder(EncoderConfig(model="tiny", on_empty="embed"))
mine = mteb.Benchmark("support desk", tasks=[SupportQuestions()])
with TemporaryDirectory() as folder:
    for _ in range(2):  # the second time every score is read from the folder
        scores = run_benchmark(encoder, mine, output=folder)
        task = scores.rows[-1]
        print(f"{task.name}: {task.score:.1f}; {encoder.stats().texts} texts encoded so far")
