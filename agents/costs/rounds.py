"""How long works take together: a device's rounds, as its worker goes through them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from unspoken.agents.costs.pace import Pace
from unspoken.agents.costs.work import TurnWork
from unspoken.agents.engines.asks import MOST_DRAFTING, most_prefilled

TURN = 0.003
"""Seconds of a turn beside its forwards: composing, sampling's last words, the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An agent that takes part.

    Attributes:
        works: The works of its turn, one, or one an item.
        waits: The agents whose messages it waits for.
        needed: How many of them start it.
        pace: Its model's pace; None where nothing is computed here.
        model: Tells models apart: turns of equal ones are computed together.
        device: Where it computes.
    """

    works: Sequence[TurnWork]
    waits: frozenset[str]
    needed: int
    pace: Pace | None
    model: object
    device: torch.device


@dataclass(slots=True, eq=False)
class _Job:
    """A turn under way, and what is left of it."""

    agent: str
    member: Member
    carry: float
    unread: float
    read: float
    steps: float
    closes: float
    length: float
    drafts: float = 0.0
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        return self.carry <= 0 and self.unread <= 0 and self.steps <= 0 and self.closes <= 0

    @property
    def writes(self) -> bool:
        return self.unread <= 0 and self.steps > 0


@dataclass(slots=True)
class Taken:
    """What a round of agents takes.

    Attributes:
        seconds: From the first turn to the end of the last.
        works: By agent, seconds of work of its turns.
    """

    seconds: float
    works: dict[str, float]


def taken_by(members: Mapping[str, Member]) -> Taken:
    """How long some agents take that start as their messages come.

    Devices compute beside each other. On one, all turns that are ready take part in each round.
    """
    return _Schedule(members).run()


class _Schedule:
    """Agents on their devices, each with a clock of its own."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members
        self._clocks: dict[torch.device, float] = {}
        self._jobs: dict[torch.device, list[_Job]] = {}
        self._left = {name: len(member.works) for name, member in members.items()}
        self._came = dict.fromkeys(members, 0)
        self._started = set[str]()
        self._taken = Taken(seconds=0.0, works=dict.fromkeys(members, 0.0))

    def run(self) -> Taken:
        """Go from round to round until no turn is left."""
        for name, member in self._members.items():
            if not member.waits & self._members.keys():
                self._start(name, 0.0)
        while any(self._jobs.values()):
            busy = [device for device, jobs in self._jobs.items() if jobs]
            device = min(busy, key=self._clocks.__getitem__)
            self._clocks[device] += _round(self._jobs[device], device)
            for job in [one for one in self._jobs[device] if one.over]:
                self._jobs[device].remove(job)
                self._end(job, self._clocks[device])
        return self._taken

    def _end(self, job: _Job, at: float) -> None:
        self._taken.works[job.agent] += job.seconds
        self._left[job.agent] -= 1
        if not self._left[job.agent]:
            self._send(job.agent, at)

    def _start(self, name: str, at: float) -> None:
        """Start an agent; one that computes nothing is over at once."""
        member = self._members[name]
        self._started.add(name)
        if member.pace is None or not member.works:
            self._send(name, at)
            return
        waiting = self._jobs.setdefault(member.device, [])
        if not waiting:
            self._clocks[member.device] = max(self._clocks.get(member.device, 0.0), at)
        waiting += [_job(name, member, work) for work in member.works]

    def _send(self, name: str, at: float) -> None:
        """Start the agents that waited for one that is over."""
        self._taken.seconds = max(self._taken.seconds, at)
        for other, member in self._members.items():
            if name in member.waits:
                self._came[other] += 1
                if other not in self._started and self._came[other] >= member.needed:
                    self._start(other, at)


def _job(name: str, member: Member, work: TurnWork) -> _Job:
    return _Job(
        agent=name,
        member=member,
        carry=work.carry + TURN,
        unread=work.computed,
        read=max(work.prompt - work.computed, 0.0),
        steps=work.steps,
        closes=work.closes,
        length=work.prompt,
        # Of a guess at least what proved right was computed.
        drafts=max(work.written - 1, 0.0) / work.steps - 1 if work.steps else 0.0,
    )


def _round(jobs: Sequence[_Job], device: torch.device) -> float:
    """One round of a device, or several alike; its seconds."""
    seconds = 0.0
    for job in jobs:
        seconds += job.carry
        job.seconds += job.carry
        job.carry = 0.0
    groups: dict[int, list[_Job]] = {}
    for job in jobs:
        if not job.over:
            groups.setdefault(id(job.member.model), []).append(job)
    several = len(groups) > 1
    for group in groups.values():
        seconds += _forward(group, device, several=several)
    return seconds


def _forward(group: Sequence[_Job], device: torch.device, *, several: bool) -> float:
    """A forward of the turns on one model; as many steps at once as nothing changes."""
    pace = group[0].member.pace
    assert pace is not None
    writers = [job for job in group if job.writes]
    room = float(most_prefilled(device, beside=bool(writers)))
    prefills = list[tuple[float, float]]()
    for job in group:
        if job.writes:
            continue
        size = min(room, job.unread if job.unread > 0 else job.closes)
        if size > 0:
            prefills.append((size, job.read))
            room -= size
            _advance(job, size)
    alone = not prefills and not several
    steps = min((job.steps for job in writers), default=0.0) if alone else 1.0
    lengths = [job.length + steps / 2 for job in writers]
    # Beside many others nothing is guessed.
    drafts = sum(job.drafts for job in writers) if len(writers) <= MOST_DRAFTING else 0.0
    seconds = pace.forward(prefills, lengths, max(drafts, 0.0)) * (steps if alone else 1.0)
    for job in writers:
        job.length += min(steps, job.steps)
        job.steps = 0.0 if job.steps - steps < 1e-9 else job.steps - steps
    for job in group:
        job.seconds += seconds
    return seconds


def _advance(job: _Job, size: float) -> None:
    job.read += size
    if job.unread > 0:
        job.unread = 0.0 if job.unread - size < 1e-9 else job.unread - size
    else:
        job.closes = 0.0 if job.closes - size < 1e-9 else job.closes - size
