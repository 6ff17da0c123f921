"""The processes that `bench` measures: ours, and each peer's in an environment of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..peers import PEERS

RESERVE_BYTES = 2 << 30  # left to the system and to what a forward adds
GRACE_S = 30
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # nothing is fetched while measuring

Reply = dict[str, Any]


class Worker:
    """A process that loads one engine in one mode and answers requests in JSON lines."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self._command = list(command)
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self.ready: Reply = {}  # what it said when it was loaded last
        self.peak_bytes = 0

    @property
    def is_running(self) -> bool:
        """Whether it is loaded, or was when it last answered."""
        return self._process is not None

    def start(self) -> None:
        """Load the engine. Raises EngineError."""
        pipe = subprocess.PIPE
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=self._environment
            )
        self.ready = self._read(self._process)

    def ask(self, request: Reply) -> Reply:
        """Return the answer to a request. Raises EngineError when the process ends."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: _read says how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read(self._process)

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                process.communicate(timeout=GRACE_S)
        finally:
            process.kill()
            process.wait()

    def _read(self, process: subprocess.Popen[str]) -> Reply:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self.close()
            raise EngineError(
                f"ended with status {process.returncode}: {_last_line(self._log)} ({self._log})"
            )
        reply = json.loads(line)
        self.peak_bytes = max(self.peak_bytes, reply.get("peak_resident_bytes", 0))
        return reply


class Workers:
    """Keeps workers loaded between their turns, as many as the memory holds. A context manager."""

    def __init__(self, model: Path) -> None:
        self._workers: list[Worker] = []
        # Float32 weights and what a large batch may take beside them.
        self._first_guess_bytes = 3 * sum(f.stat().st_size for f in model.glob("*.safetensors"))

    def ask(self, worker: Worker, request: Reply) -> Reply:
        """Return the answer to a request, after loading the worker where it is not loaded."""
        if worker not in self._workers:
            self._workers.append(worker)
        if not worker.is_running:
            needed = worker.peak_bytes or self._first_guess_bytes
            if available_bytes() < needed + RESERVE_BYTES:
                self.close()
            worker.start()
        return worker.ask(request)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def our_worker(model: Path, mode: str, work: Path, **environment: str) -> Worker:
    """Return the worker of our engine in a mode, with these variables besides the user's."""
    command = [sys.executable, "-m", f"{__package__}.ours", str(model), mode]
    return Worker(command, work / f"ours-{mode}.log", os.environ | OFFLINE | environment)


def peer_worker(peer: str, mode: str, model: Path, work: Path, made: str) -> Worker:
    """Return the worker of a peer that is installed in `work`; `made` names the model there."""
    folder = work / made
    folder.mkdir(exist_ok=True)
    # -P: the script's folder, ours, holds modules named as some products are.
    script = ["-P", str(Path(__file__).parents[1] / "peers.py")]
    command = [str(_python(peer, work)), *script, peer, str(model), str(folder), mode]
    return Worker(command, work / f"{peer}-{mode}.log", _clean_environment() | OFFLINE)


def install_peer(peer: str, work: Path) -> None:
    """Make the peer's virtual environment in `work`, unless it is there. Raises EngineError."""
    python = _python(peer, work)
    if python.exists():
        return
    folder, log_path = python.parents[1], work / f"install-{peer}.log"
    pip = [str(python), "-m", "pip", "install", *PEERS[peer].requirements]
    try:
        with log_path.open("w", encoding="utf-8") as log:
            for command in ([sys.executable, "-m", "venv", str(folder)], pip):
                subprocess.run(
                    command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    env=_clean_environment(),
                )  # fmt: skip
    except BaseException as error:  # Ctrl-C too: half an environment must not look like a whole one
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError | OSError):
            raise EngineError(
                f"cannot be installed: {_last_line(log_path)} ({log_path})"
            ) from error
        raise


def run_module(name: str) -> Reply:
    """Return the JSON that a module of this package writes when it is run."""
    command = [sys.executable, "-m", f"{__package__}.{name}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise EngineError(f"{name} ended with status {run.returncode}: {run.stderr.strip()}")
    return json.loads(run.stdout)


def available_bytes() -> float:
    """Return how much memory can be had without swapping; infinity where that is not known."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return math.inf
    return int(meminfo.read_text().partition("MemAvailable:")[2].split()[0]) * 1024


def _python(peer: str, work: Path) -> Path:
    return work / f"venv-{peer}" / "bin" / "python"


def _clean_environment() -> dict[str, str]:
    """Return this process's variables without Python's: our paths must not reach into a peer's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
