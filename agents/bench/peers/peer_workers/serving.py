"""How a worker speaks with the benchmark: a job on its first line, then a workflow per line.

It is timed on its own clock. Its memory is what the system counts of its process at the most.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from time import perf_counter, process_time
from typing import Any

from .turns import answers

Job = dict[str, Any]
Case = dict[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """What a run of a workflow did.

    Attributes:
        written: What each turn wrote: ids, or text where the engine gives text alone.
        computed: Tokens that the model computed, prompts and answers.
        first: When each turn's first token was there, on `perf_counter`.
        prompt_tokens: The prompts' lengths, of a side that composes them itself.
    """

    written: dict[str, list[int] | str] = field(default_factory=dict)
    computed: int = 0
    first: dict[str, float] = field(default_factory=dict)
    prompt_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A side that is ready.

    Attributes:
        about: What it is, with its version and settings.
        run: Runs a workflow.
        pid: The process that computes, where it is another one.
        close: Ends it.
    """

    about: str
    run: Callable[[Case], Outcome]
    pid: int | None = None
    close: Callable[[], None] = lambda: None


def serve(load: Callable[[Job], Loaded]) -> None:
    """Load what a job names, warm up, and run workflows as often as asked."""
    # What libraries print goes to the terminal, whoever prints it.
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: object) -> None:
        stream.write(json.dumps(answer) + "\n")
        stream.flush()

    job = json.loads(sys.stdin.readline())
    loaded = load(job)
    try:
        loaded.run(job["warm_up"])
        tell({"ready": loaded.about})
        for line in sys.stdin:
            tell(_measured(loaded, job["workflows"][json.loads(line)]))
    finally:
        loaded.close()


def _measured(loaded: Loaded, case: Case) -> dict[str, Any]:
    """A run of a workflow, with its time and its memory."""
    kind = _forget_peak(loaded.pid)
    began, busy = perf_counter(), cpu_seconds(loaded.pid)
    outcome = loaded.run(case)
    seconds, work = perf_counter() - began, cpu_seconds(loaded.pid) - busy
    return {
        "seconds": seconds,
        "cpu_seconds": work,
        "first_token_s": mean(outcome.first[name] - began for name in answers(case)),
        "computed": outcome.computed,
        "peak_bytes": _peak_bytes(loaded.pid),
        "peak_of": kind,
        "written": outcome.written,
        "prompt_tokens": outcome.prompt_tokens,
    }


def cpu_seconds(pid: int | None) -> float:
    """User and system time of this process; of another one too, where the system tells it."""
    work = process_time()
    if pid is not None and (stat := Path(f"/proc/{pid}/stat")).exists():
        fields = stat.read_text().rpartition(")")[2].split()
        work += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return work


def _forget_peak(pid: int | None) -> str:
    """Let the peak of memory begin anew, where the system can; it is the ``process``'s if not."""
    try:
        Path(f"/proc/{pid or 'self'}/clear_refs").write_text("5")
    except OSError:
        return "process"
    return "run"


def _peak_bytes(pid: int | None) -> int | None:
    """The most memory of a process that was in RAM; None where the system does not tell."""
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if pid is not None or sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
