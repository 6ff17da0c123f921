"""A bar on the terminal while a long call runs; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

PATIENCE_S = 3.0  # a shorter call shows nothing
REFRESH_S = 0.2


def watch(
    future: Future[Any], num_done: Callable[[], int], num_texts: int, show: bool | None
) -> None:
    """Return when the future is done, drawing a bar on stderr meanwhile.

    `show=None`: only if stderr is a terminal and the call takes longer than three seconds.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        return
    if show is None and wait([future], PATIENCE_S).done:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("encoding", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=num_texts)
        while not wait([future], REFRESH_S).done:
            bar.update(task, completed=num_done())
