"""`qwen3-embedding serve`, and OpenAI's own client: started here, asked, and ended."""

import socket
import subprocess
import sys
import time

import numpy as np
import openai

DOCUMENTS = [
    "The capital of France is Paris.",
    "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
    "Water boils at 100 °C at sea level.",
]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

# In a shell: qwen3-embedding serve --model Qwen/Qwen3-Embedding-0.6B --port 8000
command = f"-m qwen3_embedding_integrations serve --model tiny --port {port}".split()
with subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL) as server:
    try:
        while server.poll() is None:  # until it listens; /readyz says the same over HTTP
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="EMPTY") as client:
            answer = client.embeddings.create(model="tiny", input=DOCUMENTS, dimensions=128)
            vectors = np.array([one.embedding for one in answer.data])
            print(vectors.shape, answer.usage.total_tokens, "tokens")
            for question in ("法国的首都是哪里？", "房东卖房，租客能优先买吗？"):
                query = {"input": question, "extra_body": {"input_type": "query"}}  # instructed
                answer = client.embeddings.create(model="tiny", dimensions=128, **query)
                print(question, "->", DOCUMENTS[np.argmax(vectors @ answer.data[0].embedding)])
    finally:
        server.terminate()
