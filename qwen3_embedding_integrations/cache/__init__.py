"""CachedEncoder: texts that were encoded before are answered from memory, disk or Redis."""

from .encoder import CachedEncoder
from .entry import Storage
from .layer import CacheStats, StoreStats
from .stores import DiskStore, MemoryStore, RedisStore, Store

__all__ = [
    "CacheStats",
    "CachedEncoder",
    "DiskStore",
    "MemoryStore",
    "RedisStore",
    "Storage",
    "Store",
    "StoreStats",
]
