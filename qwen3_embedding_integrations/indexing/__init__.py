"""Bring a collection up to date with documents, without losing or repeating work."""

from .folders import ReadOptions, index_folders, watch_folders
from .job import Failure, IndexReport, index_documents
from .reindex import ReindexReport, can_cut, rebuild

__all__ = [
    "Failure",
    "IndexReport",
    "ReadOptions",
    "ReindexReport",
    "can_cut",
    "index_documents",
    "index_folders",
    "rebuild",
    "watch_folders",
]
