"""A side's process: told its job, then workflow by workflow when its turn comes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Absent", "Run", "Side", "Worker", "started"]

WORKERS = Path(__file__).parent
"""Where the package ``peer_workers`` is."""

PATIENCE_S = 20.0
"""How long a process may take to end."""


class Absent(Exception):
    """A side cannot run here; it says why, and what installs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to run the workflows.

    Attributes:
        name: What to call it.
        worker: Module of ``peer_workers`` that runs it.
        python: Its interpreter.
        job: What it is told besides what all are told.
    """

    name: str
    worker: str
    python: Path = Path(sys.executable)
    job: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a workflow, as its worker tells of it; see `peer_workers.serving`."""

    seconds: float
    cpu_seconds: float
    first_token_s: float
    computed: int
    peak_bytes: int | None
    peak_of: str
    written: Mapping[str, Any]
    prompt_tokens: Mapping[str, int]
    threads: int


class Worker:
    """A side that is ready to take its turns.

    Args:
        process: Its process.
        job: What it is told.
        log: Where its libraries speak.
    """

    def __init__(self, process: "subprocess.Popen[str]", job: Mapping[str, Any], log: Path) -> None:
        self._process, self._log, self._threads = process, log, job["threads"]
        self.about: str = self._asked(job)["ready"]

    def run(self, workflow: str) -> Run:
        """Have it run a workflow."""
        return Run(**self._asked(workflow), threads=self._threads)

    def _asked(self, message: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(message)}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end says why
        if not (line := self._process.stdout.readline()):
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise Absent(f"it ended with {self._process.wait()}: {said[-1] if said else 'silence'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(side: Side, job: Mapping[str, Any]) -> Iterator[Worker]:
    """A side's process, warmed up, until the block ends.

    Raises:
        Absent: It could not begin.
    """
    command = [str(side.python), "-m", f"peer_workers.{side.worker}"]
    paths = [str(WORKERS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(job["threads"]),
    }
    log = Path(job["scratch"]) / f"{side.name}.log"
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            yield Worker(process, {**job, **side.job}, log)
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Let it end by itself, so that what it has started ends too."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(PATIENCE_S)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
