"""Runs that are killed at any moment: how they end when they go on, and what was done twice.

Each run is a process of its own, forked from one that has imported all there is. Its agents write
what follows from their whole context, so a turn that read something else would write something
else. Each turn calls a function with an effect outside, as tools do: it adds a line to a file.
"""

import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from blake3 import blake3

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.engines.base import Engine, States, TurnEvent, TurnOutcome, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.runs import RunStore
from unspoken.agents.runs.journal import UNKNOWN, Journal
from unspoken.agents.testing import ScriptedModel
from unspoken.agents.workflow import Workflow

KILLS, SEED, PLAIN = 50, 0, 3
"""How many runs are killed, at which random moments, and how many are not."""

TURNS = 10

EFFECT_S = 0.01
"""How long a call takes after its effect, so that a kill may come in between."""

RUN = "killed"


class WordModel(ScriptedModel):
    """A model whose answers follow from what it reads, and whose turns have an effect.

    Args:
        folder: Where the store is and the effects go; None for a model that is not run.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(lambda agent, turn, prompt: blake3(prompt.encode()).hexdigest(length=4))
        self._folder = folder

    def make_engine(self, states: States) -> Any:
        """Its engine, which calls the function after each turn."""
        engine = super().make_engine(states)
        return engine if self._folder is None else _acting(engine, self._folder)


def _store(folder: Path) -> RunStore:
    """The store of a run that is killed, and whose machine goes on."""
    return RunStore(folder, durable=False)


def _acting(engine: LocalEngine, folder: Path) -> Engine:
    """An engine that calls a function after each turn that is computed."""
    journal, compute = Journal(_store(folder), RUN), engine.turn

    async def turn(request: TurnRequest, on_event: Callable[[TurnEvent], None]) -> TurnOutcome:
        outcome = await compute(request, on_event)
        if request.sampling is None:  # a state that is computed again is no turn
            return outcome

        async def effect() -> str:
            with (folder / "effects").open("ab", buffering=0) as file:
                file.write(f"{request.owner} {request.turn}\n".encode())
            time.sleep(EFFECT_S)  # noqa: ASYNC251  # as a function that is no coroutine does
            return "done"

        said = await journal.call((request.owner, request.turn, None), "effect", "{}", effect)
        if said == UNKNOWN:
            with (folder / "unknown").open("ab", buffering=0) as file:
                file.write(f"{request.owner} {request.turn}\n".encode())
        return outcome

    engine.turn = turn  # type: ignore[method-assign]
    return engine


def flow(folder: Path) -> Workflow:
    """Two agents that hand each other their caches, five turns each."""
    model, half = WordModel(folder), TURNS // 2
    asks = Agent("asks", model, prompt="question {{ turn }}", max_turns=half)
    tells = Agent("tells", model, prompt="answer {{ turn }}")
    loop = Workflow("ten-turns", [asks, tells]).connect(asks, tells, "same_model_cache")
    return loop.connect(tells, asks, "same_model_cache", loop=True)


def work(folder: str) -> None:
    """Begin the run of a folder, or go on with it; what it wrote is the last thing in there."""
    here = Path(folder)
    result = flow(here).run(run_id=RUN, store=_store(here))
    wrote = {name: agent.turns for name, agent in result.agents.items()}
    (here / "result.new").write_text(repr(wrote), encoding="utf-8")
    (here / "result.new").replace(here / "result")
    os._exit(0)  # threads that wait for more work would hold it up


def measure(model: WordModel, *, progress: Progress) -> Measured:
    """Kill runs at random moments, let them go on, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), progress)


def _measured(folder: Path, progress: Progress) -> Measured:
    seconds = []
    for number in range(PLAIN + 1):
        plain = folder / f"plain-{number}"
        began = time.perf_counter()
        _run(plain, None)
        seconds.append(time.perf_counter() - began)
    expected, longest = (plain / "result").read_text(), median(seconds[1:])
    draw, rows = random.Random(SEED), []
    for number in range(KILLS):
        here, kills = folder / f"killed-{number}", 0
        moment = draw.uniform(0.0, longest)
        kills += _run(here, moment)
        _run(here, None)
        rows.append({"at_ms": round(moment * 1000, 1), "killed": kills, **_found(here, expected)})
        if (number + 1) % 10 == 0:
            progress(f"{number + 1} of {KILLS} runs killed, and ended")
    killed = [row for row in rows if row["killed"]]
    return rows, {
        "kills": len(killed),
        "equal_results": sum(row["equal"] for row in killed),
        "repeated_side_effects": sum(row["repeated"] for row in killed),
        "lost_side_effects": sum(row["lost"] for row in killed),
        "unknown_side_effects": sum(row["unknown"] for row in killed),
    }


def _run(folder: Path, kill_after_s: float | None) -> bool:
    """A process that begins a run or goes on with it; whether it was killed before its end.

    Raises:
        RuntimeError: It ended with an error.
    """
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=(str(folder),))
    process.start()
    process.join(kill_after_s)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    if process.exitcode:
        raise RuntimeError(f"a run ended with the exit code {process.exitcode}")
    return False


def _found(folder: Path, expected: str) -> dict[str, Any]:
    """Whether a run ended as one that nobody killed, and what became of its effects."""
    done, unknown = _lines(folder / "effects"), _lines(folder / "unknown")
    lost = TURNS - len(done.keys() | unknown.keys())
    return {
        "equal": (folder / "result").read_text() == expected,
        "repeated": sum(count - 1 for count in done.values()),
        "lost": lost,
        "unknown": len(unknown),
    }


def _lines(file: Path) -> Counter[str]:
    with suppress(FileNotFoundError):
        return Counter(os.fsdecode(line) for line in file.read_bytes().splitlines())
    return Counter()
