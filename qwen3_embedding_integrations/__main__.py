"""`python -m qwen3_embedding_integrations` is the command `qwen3-embedding`."""

from .cli import main

if __name__ == "__main__":
    main()
