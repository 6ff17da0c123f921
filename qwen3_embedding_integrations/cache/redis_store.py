"""RedisStore: entries on a Redis server, for a time; the only module that knows redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from ..core.config import check_range, check_type
from ..errors import ConfigError, MissingDependencyError

DAY_S = 24 * 60 * 60
MAX_KEYS = 512  # of one command: some 2 MB at the 0.6B's width


class RedisStore:
    """Entries on the Redis server at `url`, each for `ttl_s` seconds after it was written.

    `url` is redis-py's: "redis://[[user]:[password]]@host:port/database", "rediss://" with TLS,
    "unix://". Connects when first used; `timeout_s` is how long connecting, or one answer, may
    take before the server counts as down. Keys begin with `prefix`. Needs the extra "redis".
    """

    name = "redis"  # not the address: it may hold a password

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        ttl_s: int = 30 * DAY_S,
        timeout_s: float = 0.25,
        prefix: str = "qwen3-embedding:",
    ) -> None:
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise MissingDependencyError("redis", extra="redis", reason=error) from error
        check_type("url", url, str)
        check_range("ttl_s", ttl_s, 1, 100 * 365 * DAY_S)
        check_type("prefix", prefix, str)
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 60:
            raise ConfigError(f"timeout_s is {timeout_s!r}; choose seconds above 0, up to 60")
        self._options = (url, ttl_s, timeout_s, prefix)
        self._ttl_s = ttl_s
        self._prefix = prefix.encode()
        try:
            self._client = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                # Said, not left to redis-py's defaults, which have changed: retries (ten in 8.1, of
                # a client made without a URL) would hold a text up longer than encoding it.
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # nothing of the third is used; it costs a command per connection
            )
        except ValueError as error:
            raise ConfigError(
                "url is no Redis URL; give redis://host:port/0, rediss:// or unix://"
            ) from error

    @property
    def stored_bytes(self) -> None:
        """Not known: the server holds others' keys as well, and `INFO memory` counts them all."""
        return None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), MAX_KEYS):
            some = keys[start : start + MAX_KEYS]
            answers: Any = self._client.mget([self._prefix + key for key in some])
            found.update((k, e) for k, e in zip(some, answers, strict=True) if e is not None)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write the entries; each is forgotten by the server `ttl_s` seconds from now."""
        rows = iter(entries.items())
        while some := list(islice(rows, MAX_KEYS)):
            with self._client.pipeline(transaction=False) as pipeline:
                for key, entry in some:
                    pipeline.set(self._prefix + key, entry, ex=self._ttl_s)
                pipeline.execute()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._options

    def __repr__(self) -> str:
        return f"RedisStore(ttl_s={self._ttl_s})"


def _rebuild(url: str, ttl_s: int, timeout_s: float, prefix: str) -> RedisStore:
    return RedisStore(url, ttl_s=ttl_s, timeout_s=timeout_s, prefix=prefix)
