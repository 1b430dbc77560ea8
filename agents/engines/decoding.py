"""Writing a turn: token by token, what must come at once, or one of several given texts."""

import math
import random
from collections.abc import Generator, Sequence

from unspoken.agents.engines.asks import Answer
from unspoken.agents.engines.base import Sampled, Sampling
from unspoken.agents.engines.drafts import Drafter
from unspoken.agents.engines.sampling import Scorer
from unspoken.agents.engines.stepping import Step, Turn

MOST_FORCED = 16
"""Most tokens that a step takes besides the one that was sampled."""


def decode(
    turn: Turn, tokens: tuple[int, ...], sampling: Sampling
) -> Generator[Step, Answer | None, str]:
    """Sample token after token; why it ended.

    Args:
        turn: The turn, its prompt computed.
        tokens: What was sampled after the prompt.
        sampling: How to write.
    """
    rows, constraint, marks = turn.rows, turn.constraint, frozenset(turn.request.snapshots)
    # What recurrent layers have read cannot be taken back, so nothing is guessed.
    guesses = turn.sampler is not None and turn.sampler.takes_likeliest
    guesses = guesses and not turn.model.geometry.recurrent
    drafter = Drafter(turn.request.ids) if guesses else None
    while True:
        before = len(turn.sampled)
        for value in tokens:
            ended = yield from _write(turn, value, sampling, drafter)
            if ended:
                return ended
        fresh = [tokens[-1]]
        for value in () if constraint is None else constraint.forced()[:MOST_FORCED]:
            ended = yield from _write(turn, value, sampling, drafter)
            if ended:
                return ended
            fresh.append(value)
        if turn.sampler is not None and turn.sampled[before:] != [*tokens]:
            turn.sampler.wrote(turn.sampled[before:])
        # A guess is never longer than what may still be written.
        room = _room(turn, sampling) - 1
        welcome = turn.drafts and (constraint is None or constraint.guessable)
        drafts = drafter.guess(room) if drafter is not None and welcome else ()
        start = rows.length
        positions = range(start, start + len(fresh))
        answer = yield from turn.compute(fresh, positions, turn.sampler, drafts, whole=True)
        tokens = answer.tokens
        if rows.length in marks:
            rows.mark()
        if drafter is not None:
            drafter.learn(len(tokens) - 1 if answer.drafted else None, answer.seconds)


def _room(turn: Turn, sampling: Sampling) -> int:
    """How many tokens may still be written."""
    reached = len(turn.request.ids) + len(turn.sampled)
    return min(sampling.max_tokens - turn.count, turn.model.max_positions - reached)


def _write(
    turn: Turn, value: int, sampling: Sampling, drafter: Drafter | None
) -> Generator[Step, Answer | None, str]:
    """Take a sampled token; why the turn ends with it, empty where it goes on."""
    reply, constraint = turn.request.reply, turn.constraint
    turn.ttft = turn.clock.now() if turn.ttft is None else turn.ttft
    if value in sampling.stop_ids:
        turn.count += 1
        return "stop"
    stopped = False
    for token in (value,) if constraint is None else constraint.push(value):
        turn.count += 1
        turn.sampled.append(token)
        if drafter is not None:
            drafter.push(token)
        stopped = reply is not None and reply.push(token)
        yield from turn.step(Sampled(token))
    if constraint is not None and constraint.over:
        return "length" if constraint.cut else "stop"
    if stopped:
        return "stop"
    return "length" if _room(turn, sampling) < 1 else ""


def choose(
    turn: Turn, first: Sequence[float], choices: Sequence[tuple[int, ...]], sampling: Sampling
) -> Generator[Step, Answer | None, tuple[float, ...]]:
    """Write one of several texts; how likely the model finds each, in their order.

    A text's likelihood is that of all its tokens, one after another; together they are 1. At
    temperature 0 the likeliest is written. Where one text begins another, the end of each counts
    as a token.

    Args:
        turn: The turn, its prompt computed.
        first: Per text, the log-probability of its first token after the prompt.
        choices: The texts, as tokens; ended, where one begins another.
        sampling: How to write.
    """
    logs, start = list(first), turn.rows.length
    for number, ids in enumerate(choices):
        if len(ids) > 1:
            scorer = Scorer(tuple((token,) for token in ids[1:]))
            positions = range(start, start + len(ids) - 1)
            answer = yield from turn.compute(ids[:-1], positions, scorer, whole=True)
            logs[number] += sum(answer.scores)
            turn.rows.truncate(start)
            for parts in turn.hidden.values():
                parts.pop()
    likelihoods = normalised(logs)
    number = max(range(len(logs)), key=logs.__getitem__)
    if sampling.temperature:
        weights = normalised([log / sampling.temperature for log in logs])
        (number,) = random.Random(sampling.seed).choices(range(len(logs)), weights)
    for value in choices[number]:
        ended = yield from _write(turn, value, sampling, None)
        if ended:
            break
    return likelihoods


def normalised(logs: Sequence[float]) -> tuple[float, ...]:
    """Shares of the exponentials; all equal where nothing is likely."""
    most = max(logs)
    if most == -math.inf:
        return (1 / len(logs),) * len(logs)
    shares = [math.exp(log - most) for log in logs]
    return tuple(share / sum(shares) for share in shares)
