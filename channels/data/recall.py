"""Key and value pairs to be recalled, after "Lost in the Middle" (Liu et al. 2023, section 3)."""

import random

from unspoken.channels.data.values import invent

__all__ = ["recall_question", "recall_records", "render_recall"]

FORMS = (
    'Key: "{key}"\nCorresponding value:',
    'What is the value of "{key}"?',
    'Which value belongs to the key "{key}"?',
    'Look up "{key}" and give its value.',
    "Extract the value that corresponds to the key {key}.",
    'In the JSON object, what stands after "{key}"?',
)
STYLES = (
    ("uuid", "uuid"),
    ("uuid", "uuid"),
    ("person", "code"),
    ("code", "word"),
    ("place", "count"),
    ("word", "password"),
    ("thing", "money"),
    ("uuid", "person"),
    ("name", "spot"),
    ("mail", "colour"),
)


def recall_records(
    rng: random.Random, n: int = 8, *, keys: str = "", values: str = ""
) -> tuple[list[list[str]], str, str]:
    """`n` records of an invented key and value each, and the key and value of one of them.

    Args:
        rng: Where chance comes from.
        n: How many records.
        keys: What the keys are, a name in `MAKERS` such as ``uuid``; drawn where empty.
        values: What the values are, likewise.
    """
    kind = rng.choice(STYLES)
    used: set[str] = set()
    records = [
        [invent(rng, keys or kind[0], used), invent(rng, values or kind[1], used)] for _ in range(n)
    ]
    key, value = rng.choice(records)
    return records, key, value


def render_recall(records: list[list[str]]) -> str:
    """The records as a JSON object with a key and its value on each line, as in the paper."""
    lines = ",\n ".join(f'"{key}": "{value}"' for key, value in records)
    return "JSON data:\n{" + lines + "}"


def recall_question(key: str, rng: random.Random | None = None) -> str:
    """The paper's question for a key, or with `rng` one of several."""
    return (rng.choice(FORMS) if rng else FORMS[0]).format(key=key)
