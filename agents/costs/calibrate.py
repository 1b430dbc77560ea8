"""Measures a model's pace in a few seconds, by the forwards that turns ask for."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import linear_regression, median
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from unspoken.agents.costs.pace import Pace, Points
from unspoken.agents.engines.asks import Compute, compute
from unspoken.agents.engines.base import Sampling
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged.segment import Rows
from unspoken.agents.planning.forecast import Calibration
from unspoken.agents.planning.plan import Plan
from unspoken.channels.errors import ChannelError
from unspoken.channels.kv.state import KVState
from unspoken.channels.machine import clock, describe_machine
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import packet_chunks
from unspoken.channels.projected import Bridge, ProjectedCacheChannel
from unspoken.channels.storage.side import pair_digest

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel

Mapped = tuple[Bridge, LocalModel]
"""A bridge, and the model whose states it maps."""

NOTHING: Mapping[str, Mapped] = MappingProxyType({})

SIZES = (2, 16, 64)
"""Tokens of the small forwards that are measured."""

LARGE = 256
"""Tokens of the large ones, one behind the other."""

ROWS = (1, 2, 4, 8)
"""Turns of the steps that are measured."""

SHORT = 16
"""Tokens of short contexts."""

FAR = 4
"""Turns of the step that is measured with long contexts."""

LONG = 1024
"""Tokens of the longest context that is measured."""

MOVED = 7
"""How far a state is moved."""

MAPPED = 256
"""Tokens of the state that a bridge maps."""

TRIALS = 3
"""How often each is measured, after a first time that does not count; the median counts."""


@torch.no_grad()
def calibrated(model: LocalModel, bridges: Mapping[str, "Mapped"] = NOTHING) -> Pace:
    """How fast a model is here and now; other work slows what is measured.

    Args:
        model: The model.
        bridges: By pair, the bridges that make states for it, each with its sharer's model.
    """
    trial = _Trial(model, min(LONG, model.max_positions // 2))
    small = [size for size in SIZES if size <= min(trial.longest, LARGE) // 2]
    prefill = [(size, trial.prefill(size)) for size in small]
    decode = tuple((rows, trial.step(rows, min(SHORT, trial.longest))) for rows in ROWS)
    chunks, far, state = trial.long()
    empty, behind = _line(chunks)
    prefill.append((trial.chunk, empty))
    reuse = _seconds(partial(trial.put, state, 0), model) / len(state)
    splice = 0.0
    if model.shifts_keys:
        splice = _seconds(partial(trial.put, state, MOVED), model) / len(state) - reuse
    facts = describe_machine(model)
    now = datetime.datetime.now(datetime.UTC)
    return Pace(
        prefill=_rising(prefill),
        behind=behind / trial.chunk,
        decode=_rising(decode),
        behind_step=max(far - dict(decode)[FAR], 0.0) / (FAR * trial.longest),
        reuse=reuse,
        splice=max(splice, 0.0),
        packet=_packet(trial, state),
        project={pair: _projected(trial, *mapped) for pair, mapped in bridges.items()},
        batches=model.refuses_batches is None,
        calibration=Calibration(
            at=now.strftime("%Y-%m-%d %H:%M"),
            processor=facts["processor"],
            threads=facts["threads"],
            dtype=facts["dtype"],
        ),
    )


def measurable(
    models: "Mapping[str, AgentModel]", plan: Plan
) -> list[tuple[LocalModel, dict[str, "Mapped"]]]:
    """The models of a workflow that compute here, each once, with the bridges that lead to them."""
    found: dict[int, tuple[LocalModel, dict[str, Mapped]]] = {}
    for model in models.values():
        if isinstance(model, LocalModel):
            found.setdefault(id(model.weights), (model, {}))
    for edge in plan.edges:
        channel, sharer = plan.channels[edge.number], models[edge.sharer]
        receiver = models[edge.receiver]
        if not isinstance(channel, ProjectedCacheChannel) or channel.mode != "prefix":
            continue
        if isinstance(sharer, LocalModel) and isinstance(receiver, LocalModel):
            pair = pair_digest(sharer.identity, receiver.identity)
            found[id(receiver.weights)][1][pair] = channel.bridge, sharer
    return list(found.values())


def _rising(points: Iterable[tuple[int, float]]) -> Points:
    """Points whose seconds never fall, as those of more work do not."""
    risen, most = list[tuple[int, float]](), 0.0
    for size, seconds in points:
        most = max(most, seconds)
        risen.append((size, most))
    return tuple(risen)


def _seconds(run: Callable[[], object], model: LocalModel) -> float:
    run()
    return median(clock(run, model.device) for _ in range(TRIALS))


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The seconds at 0 and the slope of the line nearest to some points; it never falls."""
    places, seconds = [at for at, _ in points], [taken for _, taken in points]
    if len(set(places)) == 1:
        return median(seconds), 0.0
    slope, empty = linear_regression(places, seconds)
    return (empty, slope) if slope > 0 and empty > 0 else (median(seconds), 0.0)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Forwards of a model over made-up tokens.

    Attributes:
        model: The model.
        longest: Tokens of the longest context.
    """

    model: LocalModel
    longest: int

    @property
    def chunk(self) -> int:
        """Tokens of the largest forward."""
        return min(LARGE, self.longest)

    def prefill(self, size: int) -> float:
        """Seconds of a forward of so many tokens in an empty context."""
        return _seconds(lambda: self._close(self._begun(size)), self.model)

    def long(self) -> tuple[list[tuple[int, float]], float, KVState]:
        """Seconds of large forwards by the tokens before them, and of a step of `FAR` turns.

        With the state of all of them. The first, of which there are two, warms nothing up: smaller
        ones have.
        """
        chunks = list[tuple[int, float]]()
        for number, longest in enumerate((self.chunk, self.longest)):
            rows = self.model.begin((), range(longest), spare=64)
            for before in range(0, longest - self.chunk + 1, self.chunk):
                taken = clock(partial(self._read, rows, self.chunk), self.model.device)
                chunks.append((before, taken))
            if number == 0:
                rows.close()
        state = rows.snapshot()
        rows.close()
        # Several turns over it, since what a context costs one of them is little.
        every = [self.model.begin((state,), (state.stop,), spare=64) for _ in range(FAR)]
        step = _seconds(partial(self._step, every), self.model)
        self._close(*every)
        return chunks, step, state

    def step(self, turns: int, before: int) -> float:
        """Seconds of a step of so many turns with contexts of so many tokens."""
        every = [self._begun(before) for _ in range(turns)]
        seconds = _seconds(partial(self._step, every), self.model)
        self._close(*every)
        return seconds

    def state(self) -> KVState:
        """The state of the longest context."""
        rows = self._begun(self.longest)
        state = rows.snapshot()
        rows.close()
        return state

    def put(self, state: KVState, moved: int) -> None:
        """Begin a turn with a state in place, or so many tokens further on."""
        if moved:
            state = state.shift(moved, self.model.geometry, self.model.rotary)
        self._close(self.model.begin((state,), (*range(moved), state.stop), spare=16))

    def _begun(self, size: int) -> Rows:
        rows = self.model.begin((), range(size), spare=64)
        for begin in range(0, size, LARGE):
            self._read(rows, min(LARGE, size - begin))
        return rows

    def _read(self, rows: Rows, size: int) -> None:
        at = rows.length
        positions = range(at, at + size)
        ask = Compute(model=self.model, rows=rows, ids=self.ids(size), positions=positions)
        self._answer([ask])

    def _step(self, every: Sequence[Rows]) -> None:
        sampling = Sampling(max_tokens=64)
        asks = [
            Compute(
                model=self.model,
                rows=rows,
                ids=self.ids(1),
                positions=(rows.length,),
                sampler=Sampler(sampling, (), self.model.device),
                whole=True,
            )
            for rows in every
        ]
        self._answer(asks)

    def _answer(self, asks: Sequence[Compute]) -> None:
        with self.model.weights.lock, self.model.weights.one_operation():
            answers = compute([(ask, len(ask.ids)) for ask in asks])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer

    def ids(self, size: int) -> list[int]:
        """Made-up tokens."""
        return [7 + number % 50 for number in range(size)]

    def _close(self, *every: Rows) -> None:
        for rows in every:
            rows.close()


def _packet(trial: _Trial, state: KVState) -> float:
    """Seconds a token to write a state into a packet; 0 where its model makes none."""
    ids = tuple(range(len(state)))
    message = Message(
        sharer="trial",
        segments=(),
        whole=True,
        context=ids,
        identity=trial.model.identity,
        state=state,
    )
    try:
        return _seconds(lambda: list(packet_chunks(message, key=None)), trial.model) / len(state)
    except ChannelError:
        return 0.0


def _projected(trial: _Trial, bridge: Bridge, sharer: LocalModel) -> float:
    """Seconds a token to map a sharer's state."""
    size = min(MAPPED, trial.longest, sharer.max_positions - 16)
    state, context = _Trial(sharer, size).state(), trial.ids(size)
    run = partial(bridge.project, state, range(size), context, 0, trial.model)
    with trial.model.weights.lock, trial.model.weights.one_operation():
        return _seconds(run, trial.model) / size
