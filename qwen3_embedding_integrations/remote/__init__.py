"""Vectors from an OpenAI-compatible server: the bare requests, and the encoder over them."""

from .answers import Answer
from .client import ServerClient
from .encoder import RemoteEncoder

__all__ = ["Answer", "RemoteEncoder", "ServerClient"]
