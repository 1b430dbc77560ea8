"""Key and value pairs to be recalled, after "Lost in the Middle" (Liu et al. 2023, section 3)."""

import random

from unspoken.channels.data.values import invent
from unspoken.channels.data.wording import phrases


def recall_records(
    rng: random.Random, n: int = 8, *, keys: str = "", values: str = ""
) -> tuple[list[list[str]], str, str]:
    """`n` records of an invented key and value each, and the key and value of one of them.

    Args:
        rng: Where chance comes from.
        n: How many records.
        keys: What the keys are, a name such as ``uuid``; drawn where empty.
        values: What the values are, likewise.
    """
    drawn_keys, drawn_values = rng.choice(phrases().records)
    keys, values, used = keys or drawn_keys, values or drawn_values, set[str]()
    records = [[invent(rng, keys, used), invent(rng, values, used)] for _ in range(n)]
    key, value = rng.choice(records)
    return records, key, value


def render_recall(records: list[list[str]]) -> str:
    """The records as a JSON object with a key and its value on each line, as in the paper."""
    lines = ",\n ".join(f'"{key}": "{value}"' for key, value in records)
    return "JSON data:\n{" + lines + "}"


def recall_question(key: str, rng: random.Random | None = None) -> str:
    """The paper's question for a key, or with `rng` one of several."""
    lookups = phrases().lookups
    return (rng.choice(lookups) if rng else lookups[0]).format(key=key)
