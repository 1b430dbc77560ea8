"""Passages of a given number of tokens, from a person's file or from English that CPython itself
carries.
"""

from pathlib import Path

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import InputError

__all__ = ["cut_passages", "read_text"]


def read_text(path: Path | None) -> str:
    """A file's text, or Python's own help topics.

    Raises:
        InputError: The file cannot be read.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {error}", expected="a text file in UTF-8"
        ) from error


def cut_passages(
    model: LocalModel, path: Path | None, count: int, tokens: int
) -> list[tuple[int, ...]]:
    """`count` passages of `tokens` tokens each, spread evenly over the text.

    Raises:
        InputError: The text is too short.
    """
    text = read_text(path)
    ids = model.text.encode_words(text)
    if len(ids) < count * tokens:
        raise InputError(
            f"{str(path or 'the built-in text')!r} has {len(ids)} tokens",
            expected=f"at least {count * tokens}, for {count} passages of {tokens}",
            fix="give a longer file",
        )
    stride = (len(ids) - tokens) // max(count - 1, 1)
    return [ids[at * stride : at * stride + tokens] for at in range(count)]
