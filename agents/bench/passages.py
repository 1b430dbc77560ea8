"""Passages of a given number of tokens, from a file or from Python's own help topics."""

from pathlib import Path
from pydoc_data.topics import topics

from unspoken.agents.models.model import LocalModel
from unspoken.channels.data.sources import read_text
from unspoken.channels.errors import InputError


def cut_passages(
    model: LocalModel, path: Path | None, count: int, tokens: int
) -> list[tuple[int, ...]]:
    """`count` passages of `tokens` tokens each, spread evenly over the text.

    Args:
        model: Whose tokens count.
        path: A text file; None stands for Python's help topics.
        count: How many passages.
        tokens: Tokens of each.

    Raises:
        InputError: The file cannot be read, or is too short.
    """
    builtin = "\n\n".join(topics[name] for name in sorted(topics))
    text = builtin if path is None else read_text(path)
    ids = model.text.encode_words(text)
    if len(ids) < count * tokens:
        raise InputError(
            f"{str(path or 'the built-in text')!r} has {len(ids)} tokens",
            expected=f"at least {count * tokens}, for {count} passages of {tokens}",
            fix="give a longer file",
        )
    stride = (len(ids) - tokens) // max(count - 1, 1)
    return [ids[number * stride :][:tokens] for number in range(count)]
