"""LangChain: the embeddings of any vector store."""

import asyncio

from langchain_core.vectorstores import InMemoryVectorStore

from qwen3_embedding_integrations.langchain import Qwen3Embeddings

store = InMemoryVectorStore(Qwen3Embeddings("tiny", dimensions=128))
store.add_texts(
    [
        "The capital of France is Paris.",
        "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
        "Water boils at 100 °C at sea level.",
    ]
)
retriever = store.as_retriever(search_kwargs={"k": 1})
print(retriever.invoke("At what temperature does water boil?")[0].page_content)


async def main() -> None:
    questions = ["Which city is the capital of France?", "房东卖房，租客能优先买吗？"]
    answers = await asyncio.gather(*(retriever.ainvoke(question) for question in questions))
    for question, found in zip(questions, answers, strict=True):
        print(question, "->", found[0].page_content)


asyncio.run(main())
