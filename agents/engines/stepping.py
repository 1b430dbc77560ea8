"""A turn under way: what it asks of its device, what it has written, and how long it has worked."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from unspoken.agents.engines.asks import Answer, Compute
from unspoken.agents.engines.assembly import Assembly
from unspoken.agents.engines.base import TurnEvent, TurnRequest
from unspoken.agents.engines.constraints import Constraint
from unspoken.agents.engines.sampling import Sampler, Scorer
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.hf import Capture
from unspoken.agents.models.ragged.segment import Rows
from unspoken.channels.errors import RunTimeout

Step = TurnEvent | Compute | None
Asking = Generator[Step, Answer | None, Answer]


class Clock:
    """Seconds of work alone: paused while other jobs have the device."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = perf_counter()

    def pause(self) -> None:
        self.seconds += perf_counter() - self._since

    def resume(self) -> None:
        self._since = perf_counter()

    def now(self) -> float:
        return self.seconds + perf_counter() - self._since


@dataclass(slots=True, eq=False)
class Turn:
    """A turn under way.

    Attributes:
        model: Its model.
        request: What it is to do.
        assembly: States in place.
        rows: Its growing rows.
        sampler: Chooses its tokens; None where it writes nothing.
        clock: Its seconds of work.
        hidden: What was captured of the layers asked for.
        sampled: Ids sampled, but for one that ended the turn by itself.
        count: Ids sampled, that one included.
        ttft: Seconds to the first of them.
        forwards: Forwards that it took part in.
        company: Turns that those computed, itself included, counted once a forward.
        drafts: Whether drafts are welcome in its next forward.
        constraint: What it may write; None for every token.
    """

    model: TurnModel
    request: TurnRequest
    assembly: Assembly
    rows: Rows
    sampler: Sampler | None
    clock: Clock
    hidden: Capture
    sampled: list[int] = field(default_factory=list)
    count: int = 0
    ttft: float | None = None
    forwards: int = 0
    company: int = 0
    drafts: bool = True
    constraint: Constraint | None = None

    def step(self, event: TurnEvent | None) -> Generator[Step, Answer | None, None]:
        """Give the device away for a moment."""
        self.check_time()
        self.clock.pause()
        yield event
        self.clock.resume()

    def compute(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        sampler: Sampler | Scorer | None = None,
        drafts: tuple[int, ...] = (),
        *,
        whole: bool = False,
    ) -> Asking:
        """Have some tokens computed, all or the first of them."""
        self.check_time()
        self.clock.pause()
        answer = yield Compute(
            model=self.model,
            rows=self.rows,
            ids=ids,
            positions=positions,
            sampler=sampler,
            drafts=drafts,
            capture=self.hidden,
            whole=whole,
        )
        self.clock.resume()
        assert answer is not None  # whoever drives a turn answers what it asks
        self.clock.seconds += answer.seconds
        self.forwards += 1
        self.company += answer.turns
        self.drafts = answer.drafts
        return answer

    def check_time(self) -> None:
        """Refuse to go on where the turn has worked for longer than it may."""
        limit, owner = self.request.limit_s, self.request.owner
        if limit is not None and self.clock.now() > limit:
            raise RunTimeout(
                f"agent {owner!r} took longer than its timeout of {limit:g} s",
                agent=owner,
                expected="at most so many seconds of its own work; waiting for others does not "
                "count",
                fix="raise the agent's timeout, or lower its max_new_tokens",
            )
