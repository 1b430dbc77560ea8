"""Runs that are killed at any moment: how they end when they go on, and what was done twice.

Each run is a process of its own, forked from one that has imported all there is. In each of its ten
turns an agent calls two tools: one looks something up, and one adds a line to a file, which is an
effect outside. The model decides what it asks for and what it writes down. Its words follow from
all that it reads, but for what the second tool returned: of a call that was cut off nobody knows
that.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from statistics import median
from typing import Any

from blake3 import blake3

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.runs import RunStore
from unspoken.agents.testing import ScriptedModel
from unspoken.agents.tools import tool
from unspoken.agents.workflow import Workflow

KILLS, UNSEEDED, PLAIN = SCALES["resume"].rows, 20, 3
"""How often runs are killed whose model writes the same each time; how often others are; and how
many runs are not, to see what is equal and how long it takes.
"""

SEED = 0
"""Of the moments."""

TURNS = 10

EFFECT_S = 0.01
"""How long a call takes after its effect, so that a kill may come in between."""

POLL_S = 0.001

RUN = "killed"
LOOK_UP, WRITE_DOWN = "look_up", "write_down"
ASKED = "Your turn:"

_WRITTEN = re.compile(f"The tool {WRITE_DOWN} returned:.*?<\\|im_end\\|>", re.DOTALL)


class WordModel(ScriptedModel):
    """A model that calls two tools in each turn; what it writes follows from what it reads.

    Args:
        seeded: Whether it writes the same each time.
    """

    def __init__(self, *, seeded: bool = True) -> None:
        super().__init__(self._words)
        self._seeded = seeded

    def _words(self, agent: str, turn: int, prompt: str) -> str:
        read = _WRITTEN.sub("", prompt).encode()
        word = blake3(read if self._seeded else read + os.urandom(8)).hexdigest(length=4)
        since = prompt.rpartition(ASKED)[2]
        if f"The tool {LOOK_UP} returned" not in since:
            return _call(LOOK_UP, {"word": word})
        if f"The tool {WRITE_DOWN} returned" not in since:
            return _call(WRITE_DOWN, {"line": f"{agent}-{since.split()[0]} {word}"})
        return word


def _call(name: str, arguments: dict[str, str]) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def tools(folder: Path) -> list[Callable[..., Any]]:
    """What the agents call: one may be called twice, one has an effect outside."""

    @tool(name=LOOK_UP, idempotent=True)
    def look_up(word: str) -> str:
        """What another word stands for."""
        return blake3(word.encode()).hexdigest(length=4)

    @tool(name=WRITE_DOWN)
    def write_down(line: str) -> str:
        """Add a line to the book."""
        with (folder / "effects").open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())
        time.sleep(EFFECT_S)
        return "written"

    return [look_up, write_down]


def flow(folder: Path, *, seeded: bool = True) -> Workflow:
    """Two agents that hand each other their caches, five turns each."""
    model, acts = WordModel(seeded=seeded), tools(folder)
    prompt, calls = ASKED + " {{ turn }}", {"max_new_tokens": 99}
    asks, tells = (
        Agent(name, model, prompt=prompt, tools=acts, generate=calls, max_turns=TURNS // 2)
        for name in ("asks", "tells")
    )
    loop = Workflow("ten-turns", [asks, tells]).connect(asks, tells, "same_model_cache")
    return loop.connect(tells, asks, "same_model_cache", loop=True)


def work(folder: str, seeded: bool, states: bool) -> None:
    """Begin the run of a folder, or go on with it; how it ended is the last thing in there."""
    here = Path(folder)
    result = flow(here, seeded=seeded).run(run_id=RUN, store=_store(here), states=states)
    turns = [turn for agent in result.report.agents.values() for turn in agent]
    calls = [call for turn in turns for call in turn.tool_calls if call.tool == WRITE_DOWN]
    unread = [call for call in result.report.unknown_calls if call.tool == WRITE_DOWN]
    told = {
        "words": {name: list(agent.turns) for name, agent in result.agents.items()},
        "known": [call.arguments["line"] for call in calls if not call.unknown],
        "unknown": sorted({call.arguments["line"] for call in (*calls, *unread) if call.unknown}),
    }
    (here / "result.new").write_text(json.dumps(told), encoding="utf-8")
    (here / "result.new").replace(here / "result")
    os._exit(0)  # threads that wait for more work would hold it up


def _store(folder: Path) -> RunStore:
    return RunStore(folder / "runs")


def measure(model: WordModel, *, count: int | None = None, progress: Progress) -> Measured:
    """Kill runs at random moments, let them go on, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), count, progress)


@dataclass(frozen=True, slots=True)
class _Pace:
    """How long an undisturbed run takes to its first effect, and for each turn; what it wrote."""

    first_s: float
    turn_s: float
    words: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a run is killed: so many seconds after so many effects."""

    effects: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Killed:
    """What a killed run had in its store.

    Attributes:
        words: What was handed over, by agent.
        in_call: Whether a call had begun and not ended.
        after_effect: Whether its effect was there already.
    """

    words: dict[str, list[str]]
    in_call: bool
    after_effect: bool


def _measured(folder: Path, wanted: int | None, progress: Progress) -> Measured:
    pace, draw = _undisturbed(folder), random.Random(SEED)
    rows, over = list[dict[str, Any]](), Counter[bool]()
    # Two fifths of them sample without a seed.
    counts = (KILLS, UNSEEDED) if wanted is None else (wanted, max(1, wanted * 2 // 5))
    for seeded, kills in zip((True, False), counts, strict=True):
        left = kills
        while left:
            here = Path(tempfile.mkdtemp(dir=folder))
            row = _killed_run(here, pace, draw, len(rows), seeded=seeded, most=min(left, 2))
            if row is None:
                over[seeded] += 1
                continue
            left -= row["kills"]
            rows.append({"run": len(rows), "seeded": seeded, **row})
            if len(rows) % 10 == 0:
                progress(f"{len(rows)} runs killed, and ended")
    plain, other = (
        _figures([row for row in rows if row["seeded"] is seeded], over[seeded])
        for seeded in (True, False)
    )
    return rows, {**plain, **{f"{name}_unseeded": figure for name, figure in other.items()}}


def _figures(rows: Sequence[dict[str, Any]], over: int) -> dict[str, int]:
    """What became of runs that were killed, beside so many that were over before their moment."""
    sums = {f"{key}_side_effects": key for key in ("repeated", "lost", "untold")}
    sums |= {"reported_unknown": "unknown", "kills_of_a_resume": "resumed"}
    sums |= {"kills_in_a_call": "in_call", "kills_after_an_effect": "after_effect"}
    return {
        "kills": sum(row["kills"] for row in rows),
        "equal_results": sum(row["kills"] for row in rows if row["equal"]),
        **{name: sum(row[key] for row in rows) for name, key in sums.items()},
        "over_before_their_moment": over,
    }


def _undisturbed(folder: Path) -> _Pace:
    """Runs that nobody kills; the first one warms up."""
    first, every = [], []
    for number in range(PLAIN + 1):
        plain, began = folder / f"plain-{number}", time.perf_counter()
        process = _begun(plain, seeded=True, states=False)
        _wait_for(process, plain, _Moment(1, 0.0))
        first.append(time.perf_counter() - began)
        _ended(process)
        every.append((time.perf_counter() - began - first[-1]) / TURNS)
    words = json.loads((plain / "result").read_text())["words"]
    return _Pace(median(first[1:]), median(every[1:]), words)


def _killed_run(
    folder: Path, pace: _Pace, draw: random.Random, number: int, *, seeded: bool, most: int
) -> dict[str, Any] | None:
    """A run that is killed, every third one again while it goes on, and then ends.

    Moments are spread over the run: after each number of effects, some of them at once.

    Returns:
        What was found; None where the run was over before its moment.
    """
    states = number % 2 == 1
    effects = number % (TURNS + 1)
    moments = [_moment(effects, pace, draw, at_once=number % 4 == 0)]
    if most > 1 and number % 3 == 0:
        again = draw.randint(effects, TURNS)
        moments.append(_moment(again, pace, draw, at_once=again > effects and number % 2 == 0))
    found: list[_Killed] = []
    for moment in moments:
        process = _begun(folder, seeded=seeded, states=states)
        _wait_for(process, folder, moment)
        process.kill()
        if _ended(process):
            break
        found.append(_left_behind(folder))
    if not found:
        return None
    if not (folder / "result").exists():
        _ended(_begun(folder, seeded=seeded, states=states))
    return {"kills": len(found), "states": states, **_told(folder, found, pace if seeded else None)}


def _moment(effects: int, pace: _Pace, draw: random.Random, *, at_once: bool) -> _Moment:
    most = pace.turn_s if effects else pace.first_s
    return _Moment(effects, 0.0 if at_once and effects else draw.uniform(0.0, most))


def _begun(folder: Path, *, seeded: bool, states: bool) -> Any:
    """A process that begins a run or goes on with it."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=(str(folder), seeded, states))
    process.start()
    return process


def _wait_for(process: Any, folder: Path, moment: _Moment) -> None:
    """Wait for a moment of a run, or for its end."""
    while process.is_alive() and len(_lines(folder)) < moment.effects:
        process.join(POLL_S)
    process.join(moment.seconds)


def _ended(process: Any) -> bool:
    """Wait for the end of a process; whether it came to the end of its work, and was not killed.

    Raises:
        RuntimeError: It ended with an error.
    """
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with the exit code {process.exitcode}")
    return bool(process.exitcode == 0)


def _left_behind(folder: Path) -> _Killed:
    """What a killed run has in its store; a copy is read, so that the store stays as it is."""
    look = folder / f"look-{time.monotonic_ns()}"
    look.mkdir()
    for file in (folder / "runs").glob("runs.sqlite*"):
        copy(file, look)
    words: dict[str, list[str]] = {}
    with closing(RunStore(look)) as store:
        known = store.file.exists() and store.find(RUN)
        for agent, _, text in store.words(RUN) if known else ():
            words.setdefault(agent, []).append(text)
        open_calls = [call for call in store.calls(RUN) if call.result is None] if known else []
    lines = [json.loads(call.arguments).get("line") for call in open_calls]
    after_effect = any(line in _lines(folder) for line in lines)
    return _Killed(words=words, in_call=bool(open_calls), after_effect=after_effect)


def _told(folder: Path, found: Sequence[_Killed], pace: _Pace | None) -> dict[str, Any]:
    """How a run ended, and what became of its effects.

    Without a pace each run writes something else: what was handed over before a kill must stay.
    """
    told, done = json.loads((folder / "result").read_text()), Counter(_lines(folder))
    words = told["words"]
    kept = all(
        words.get(agent, [])[: len(texts)] == texts
        for one in found
        for agent, texts in one.words.items()
    )
    whole = sum(map(len, words.values())) == TURNS
    return {
        "turns": ", ".join(str(sum(map(len, one.words.values()))) for one in found),
        "equal": kept and (whole if pace is None else words == pace.words),
        "in_call": sum(one.in_call for one in found),
        "after_effect": sum(one.after_effect for one in found),
        "resumed": len(found) - 1,
        "repeated": _repeated(done, {*told["known"], *told["unknown"]}),
        "lost": len(set(told["known"]) - done.keys()),
        "untold": len(done.keys() - {*told["known"], *told["unknown"]}),
        "unknown": len(told["unknown"]),
    }


def _repeated(done: Counter[str], told: Collection[str]) -> int:
    """How many effects a turn has beyond its one, and beyond those that the report tells of.

    Two that differ count too: a model that writes something else each time repeats itself in other
    words.
    """
    made, known = Counter[str](), Counter(line.split()[0] for line in told)
    for line, count in done.items():
        made[line.split()[0]] += count
    return sum(max(0, count - max(1, known[turn])) for turn, count in made.items())


def _lines(folder: Path) -> list[str]:
    """The effects of a run."""
    with suppress(FileNotFoundError):
        return (folder / "effects").read_text(encoding="utf-8").splitlines()
    return []
