"""Work that several threads take piece by piece, and how they wait for each other.

Each takes the next piece that nobody has taken, and no one goes on before all of a phase are done.
So a thread that comes late, or is put aside by the operating system, delays nobody.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from numba import types

from .tiles import count_up, jit, read_count

SPINS = 20_000  # looks at a counter before the processor is left to others: about 0.5 ms

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@jit
def take_piece(counters, phase):
    """Return the number of a piece that no thread has taken."""
    return count_up(counters.ctypes.data + 16 * phase)


@jit
def announce(counters, phase):
    """Count one more piece of a phase as done."""
    count_up(counters.ctypes.data + 16 * phase + 8)


@jit
def wait_for(counters, phase, num_pieces):
    """Return when so many pieces of a phase are done."""
    address = counters.ctypes.data + 16 * phase + 8
    spins = 0
    while read_count(address) < num_pieces:
        spins += 1
        if spins > SPINS:
            sched_yield()
