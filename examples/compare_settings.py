"""Compare: which width, and which weight of vectors beside keywords, on your own questions.

From files, on the command line: `qwen3-embedding compare my-beir-folder/ --dense-weight none,0.5`.
"""

from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.evaluation import RetrievalSet, compare

ANSWERS = {
    "房东要卖房，我作为租客能优先买吗？": "民法典第七百二十六条",
    "租房合同最长能签多少年？": "民法典第七百零五条",
    "捡到别人的钱包要还吗？": "民法典第三百一十四条",
    "离婚冷静期是多少天？": "民法典第一千零七十七条",
    "自己手写的遗嘱有效吗？": "民法典第一千一百三十四条",
    "Can I get my money back?": "help/refunds",
    "Is there something for Android?": "help/mobile-app",
    "Are my files kept in Europe?": "help/data-residency",
    "The screen is too bright at night": "help/dark-mode",
    "I want to leave Larkbook for good": "help/delete-account",
}
dataset = RetrievalSet(
    "demo",
    documents={text.id: text.document for text in load_texts()},
    queries={question: question for question in ANSWERS},
    relevant={question: {answer: 1} for question, answer in ANSWERS.items()},
)

found = compare("tiny", dataset, {"dimensions": [256, 64], "dense_weight": [None, 0.5]})
for trial in found.trials:
    value, low, high = trial.metrics["ndcg@10"]
    mark = "*" if trial is found.recommended else " "
    print(f"{mark} {value:.3f} ({low:.3f} to {high:.3f})", found.describe(trial.setting))
print(found.instructions)
print(found.snippet())
