"""Tune a model for your data: LoRA adapters from pairs or from queries and their documents."""

from .config import FinetuneConfig
from .run import FinetuneReport, finetune

__all__ = ["FinetuneConfig", "FinetuneReport", "finetune"]
