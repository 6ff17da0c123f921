"""Waiting for a call: a caller who leaves takes back what has not run yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .progress import watch

if TYPE_CHECKING:
    from .core.calls import Call

Results = npt.NDArray[np.float32]


class Submitted(Protocol):
    """What submitting returns: the call, beside whatever makes the answer of its results."""

    @property
    def call(self) -> Call:
        """The call under way."""
        ...


J = TypeVar("J", bound=Submitted)


def results_of(job: Submitted, show_progress: bool | None = False) -> Results:
    """Return the call's results, drawing a bar meanwhile as `progress.watch` does."""
    call = job.call
    num_texts = len(call.vectors)
    try:
        watch(call.future, lambda: num_texts - call.num_missing, num_texts, show_progress)
        return call.future.result()
    except BaseException:  # Ctrl-C too: what has not run yet is not wanted any more
        call.future.cancel()
        raise


async def submit_in_thread(submit: Callable[..., J], *arguments: Any) -> J:
    """Return submit(*arguments), which tokenises, without blocking the event loop."""
    submitting = asyncio.ensure_future(asyncio.to_thread(submit, *arguments))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_take_back)
        raise


async def aresults_of(job: Submitted) -> Results:
    """Return the call's results without blocking the event loop."""
    return await asyncio.wrap_future(job.call.future)


def _take_back(submitting: asyncio.Future[Any]) -> None:
    """Cancel a call whose caller left while it was being tokenised."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().call.future.cancel()
