"""Vectors from an OpenAI-compatible server: the bare requests, and the encoder over them."""

from .client import Answer, ServerClient

__all__ = ["Answer", "ServerClient"]
