"""The steps of a call, written once and taken on a thread or awaited on an event loop.

A road is a generator: it yields what has to be done and is sent what came of it. What it claims it
gives back in a `finally`, wherever its caller leaves.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from ..contract import Encoder, Vectors
from .flights import Flight, Rows


class Step(Protocol):
    """Something that takes time."""

    def run(self) -> Any: ...
    async def arun(self) -> Any: ...


Road = Generator[Step, Any, Vectors]


class Aside(NamedTuple):
    """A question to the stores, which may block."""

    function: Callable[[], Any]

    def run(self) -> Any:
        """Return what the function returns."""
        return self.function()

    async def arun(self) -> Any:
        """Return what the function returns, computed on another thread."""
        return await asyncio.to_thread(self.function)


class Wait(NamedTuple):
    """The end of another call's flight."""

    flight: Flight

    def run(self) -> Rows | None:
        """Return the flight's rows, or None."""
        return self.flight.wait()

    async def arun(self) -> Rows | None:
        """Return the flight's rows, or None."""
        return await self.flight.await_()


class Encode(NamedTuple):
    """Texts for the wrapped encoder, in the role and with the options of the call."""

    encoder: Encoder
    role: str
    instruction: str | None
    show_progress: bool | None
    texts: Sequence[str] = ()

    def run(self) -> Vectors:
        """Return one vector per text, or raise what the encoder raises."""
        if self.role == "query":
            encode: Callable[..., Vectors] = self.encoder.encode_queries
            options: dict[str, Any] = {"instruction": self.instruction}
        else:
            encode, options = self.encoder.encode_documents, {}
        if "show_progress" in inspect.signature(encode).parameters:
            options["show_progress"] = self.show_progress
        return encode(self.texts, **options)

    async def arun(self) -> Vectors:
        """Return one vector per text, or raise what the encoder raises."""
        if self.role == "query":
            return await self.encoder.aencode_queries(self.texts, instruction=self.instruction)
        return await self.encoder.aencode_documents(self.texts)


def drive(road: Road) -> Vectors:
    """Return where the road leads, each step taken on this thread."""
    advance: Callable[[Any], Step] = road.send
    came: Any = None
    while True:
        try:
            step = advance(came)
        except StopIteration as end:
            return end.value
        try:
            advance, came = road.send, step.run()
        except BaseException as error:
            advance, came = road.throw, error


async def adrive(road: Road) -> Vectors:
    """Return where the road leads, each step awaited."""
    advance: Callable[[Any], Step] = road.send
    came: Any = None
    while True:
        try:
            step = advance(came)
        except StopIteration as end:
            return end.value
        try:
            advance, came = road.send, await step.arun()
        except BaseException as error:  # cancellation too: the road gives back what it claimed
            advance, came = road.throw, error
