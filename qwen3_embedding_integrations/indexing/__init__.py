"""Bring a collection up to date with documents, without losing or repeating work."""

from .folders import ReadOptions, index_folders, watch_folders
from .job import Failure, IndexReport, index_documents

__all__ = [
    "Failure",
    "IndexReport",
    "ReadOptions",
    "index_documents",
    "index_folders",
    "watch_folders",
]
