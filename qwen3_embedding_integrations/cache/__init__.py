"""CachedEncoder: texts that were encoded before are answered from memory, disk or Redis."""

from .disk import DiskStore
from .encoder import CachedEncoder
from .entry import Storage
from .layer import CacheStats, Store, StoreStats
from .memory import MemoryStore
from .redis_store import RedisStore

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
