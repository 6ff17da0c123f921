"""Evaluate: quality on your own questions, with intervals, and whether a smaller setting is worse.

From files, also on the command line: `qwen3-embedding evaluate my-beir-folder/ --dimensions 64`.
"""

from qwen3_embedding_integrations import EncoderConfig, evaluate, shared_encoder
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.evaluation import RetrievalSet, compare_paired

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

whole = evaluate(shared_encoder("tiny"), dataset)
short = evaluate(shared_encoder(EncoderConfig(model="tiny", dimensions=32)), dataset)
for dimensions, found in ((256, whole), (32, short)):
    value, low, high = found.metrics["ndcg@10"]
    print(f"{dimensions:3} dimensions: nDCG@10 {value:.3f} ({low:.3f} to {high:.3f})")
gain = compare_paired(whole.results, short.results)["ndcg@10"]
print(f"256 over 32: {gain.difference:+.3f}, p = {gain.p_value:.3f}")
