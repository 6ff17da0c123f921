"""The models by name: loaded at the start, unloaded when idle, loaded again when asked for."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from ..errors import ConfigError
from .config import Kind, ServedModel
from .problems import Refusal, unavailable

logger = logging.getLogger(__name__)

State = Literal["loading", "loaded", "unloaded", "failed"]


class Slot:
    """One served model, loaded or not."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.num_users = 0
        self.num_loads = 0
        self.state: State = "unloaded"
        self.model: Any = None
        self._last_used = time.monotonic()
        self._loading: asyncio.Future[Any] | None = None
        self._closing: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[Any]:
        """Hold the model, loaded if it must be. Raises a 503 Refusal when it cannot be."""
        self.num_users += 1
        try:
            yield await self.loaded()
        finally:
            self.num_users -= 1
            self._last_used = time.monotonic()

    async def loaded(self) -> Any:
        """Return the model. Whoever asks while it is loaded waits for the one load."""
        if self.model is not None and not getattr(self.model, "is_closed", False):
            return self.model
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
            # Every client may leave: what a load then fails with is in the log.
            self._loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._loading)

    async def _load(self) -> Any:
        name, start = self.served.name, time.monotonic()
        self.state, self.model = "loading", None
        try:
            if self._closing is not None:
                await self._closing
            self.model = await asyncio.to_thread(self.served.load)
        except Exception as error:
            self.state = "failed"
            logger.exception("model %s cannot be loaded", name)
            raise unavailable(
                f"the model '{name}' cannot be loaded ({type(error).__name__}); the server's log "
                "says why"
            ) from error
        finally:
            self._loading = None
        self.state, self._last_used = "loaded", time.monotonic()
        self.num_loads += 1
        logger.info("model %s loaded in %.1f s", name, time.monotonic() - start)
        return self.model

    async def unload(self, idle_s: float = 0.0) -> None:
        """Free the model unless someone uses it, or did in the last `idle_s`."""
        is_idle = time.monotonic() - self._last_used >= idle_s
        if self.model is None or self.num_users or not is_idle:
            return
        model, self.model, self.state = self.model, None, "unloaded"
        self._closing = asyncio.ensure_future(asyncio.to_thread(_close, model))
        del model
        try:
            await asyncio.shield(self._closing)
        finally:
            self._closing = None
        logger.info("model %s unloaded", self.served.name)


class Models:
    """The slots by name and alias."""

    def __init__(self, served: Sequence[ServedModel], keep_alive_s: float | None) -> None:
        if not served:
            raise ConfigError("no model is given; serve one at least")
        self.slots = [Slot(one) for one in served]
        self.names: dict[str, Slot] = {}  # and aliases
        for slot in self.slots:
            for name in (slot.served.name, *slot.served.aliases):
                if name in self.names:
                    raise ConfigError(f"two models are called {name!r}; name one of them otherwise")
                self.names[name] = slot
        self._keep_alive_s = keep_alive_s
        self._tasks: list[asyncio.Future[None]] = []

    def find(self, name: str, kind: Kind) -> Slot:
        """Return the slot that answers to the name. Raises a 404 or 400 Refusal."""
        slot = self.names.get(name)
        if slot is None:
            raise self.missing(name)
        if slot.served.kind != kind:
            able = {"embedding": "rerank", "reranking": "make vectors"}[slot.served.kind]
            others = ", ".join(one.served.name for one in self.slots if one.served.kind == kind)
            raise Refusal(
                400,
                f"the model '{name}' cannot {able}; served for that: {others or 'none'}",
                param="model",
            )
        return slot

    def missing(self, name: str) -> Refusal:
        """Return the refusal of a name that no model has."""
        known = ", ".join(self.names)
        return Refusal(
            404,
            f"The model '{name[:200]}' does not exist; served: {known}",
            code="model_not_found",
            param="model",
        )

    @property
    def is_ready(self) -> bool:
        """Whether the first load is over, and did not fail for every model."""
        states = {slot.state for slot in self.slots}
        return bool(self._tasks) and "loading" not in states and states != {"failed"}

    def start(self, on_failure: Callable[[Exception], None]) -> None:
        """Load every model, in the background; unload idle ones from then on."""

        async def load() -> None:
            for slot in self.slots:
                try:
                    await slot.loaded()
                except Refusal as refusal:
                    cause = refusal.__cause__
                    on_failure(cause if isinstance(cause, Exception) else refusal)

        for slot in self.slots:
            slot.state = "loading"
        self._tasks = [asyncio.ensure_future(load())]
        if self._keep_alive_s is not None:
            self._tasks.append(asyncio.ensure_future(self._unload_idle(self._keep_alive_s)))

    async def close(self) -> None:
        """Free every model; requests are over by then."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for slot in self.slots:
            await slot.unload()

    async def _unload_idle(self, keep_alive_s: float) -> None:
        while True:
            await asyncio.sleep(min(keep_alive_s / 4, 5.0))
            for slot in self.slots:
                await slot.unload(keep_alive_s)


def _close(model: Any) -> None:
    close: Callable[[], object] = getattr(model, "close", object)
    close()
    del model, close
    gc.collect()  # what still refers to the weights in a circle
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for other processes on the card
