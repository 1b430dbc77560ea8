"""What an audit shows of a bridge for certain: the lower bounds that an edge is held to."""

from collections.abc import Callable
from dataclasses import dataclass

CONTEXTS = 100
"""Fewest contexts on which an audit shows anything."""

DRAWN = 200
"""Contexts that an audit measures unless told otherwise.

That 100 lose nothing leaves room for a loss of 0.036, more than an edge allows by default; that is
shown from 122 on, if none loses anything.
"""

STYLE = 0.05
"""Most that a wholly wrong message may gain over another text's, by what the bridge learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBounds:
    """Lower bounds of 95 % intervals; None for what was not shown.

    With L the loss of a right answer in a receiver's turn as a workflow composes it: T the text,
    T′ another row's text, B the bridge, E* a bridge of equal size and training that gets the
    receiver's embeddings alone.

    Attributes:
        contexts: How many contexts were measured; 0 in audits of older versions.
        compared: Whether the text that the bridge was fitted on was there, so that none of the
            contexts shares anything with it.
        longest: Tokens of the longest messages that were measured; None where it is not known.
        message_kept: (L(T′) - L(B)) / (L(T′) - L(T)).
        sharer_adds: (L(E*) - L(B)) / (L(T′) - L(T)).
        task_difference: The task's score after the bridge less that after the text; None where the
            text itself is not shown to score better than another row's.
        style: Upper bound of what a wholly wrong message gains, as a share of the text's.
        fuse_adds: In fuse mode, accuracy less that with another question's sharer; None of fewer
            than 100 questions.
    """

    contexts: int = CONTEXTS
    compared: bool = True
    longest: int | None = None
    message_kept: float | None = None
    sharer_adds: float | None = None
    task_difference: float | None = None
    style: float | None = None
    fuse_adds: float | None = None


def bounds_of(number: Callable[[str], float | None], *, compared: bool) -> AuditBounds:
    """The bounds of an audit, whose summary gives a number for a name.

    Args:
        number: Gives it.
        compared: As `AuditBounds` has it.
    """
    longest, questions = number("task_tokens"), number("fuse_n") or 0
    return AuditBounds(
        contexts=int(number("contexts") or 0),
        compared=compared,
        longest=None if longest is None else int(longest),
        message_kept=number("message_kept_low"),
        sharer_adds=number("sharer_adds_low"),
        task_difference=number("task_difference_low"),
        style=number("style_high"),
        fuse_adds=number("fuse_over_mismatched_low") if questions >= CONTEXTS else None,
    )
