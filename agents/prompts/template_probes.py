"""What a chat template does to the words of a turn, found by rendering words that show it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unspoken.channels.errors import ModelSupportError

Render = Callable[[Sequence[Mapping[str, str]], bool], str]

WORDS = ("q0zq", "q1zq", "q2zq", "q3zq")
"""Words that no template writes by itself."""

_ROLES = {"s": "system", "u": "user", "a": "assistant"}

_SPACES = " \n\t\r"
"""A template that strips all of these strips all space."""

_SHAPES = {"system": ("su", 0), "inline": ("su", 1), "user": ("u", 0), "assistant": ("uau", 1)}
"""Per role a conversation, and which of its turns has that role; the user's in two places."""

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
"""What models write around thoughts. It opens and closes no turn, so outputs keep it."""


@dataclass(frozen=True, slots=True)
class Trim:
    """What a template strips off words.

    Attributes:
        left: Characters that it strips off their beginning, as of `str.strip`: None for all space.
        right: The same for their end.
    """

    left: str | None = ""
    right: str | None = ""

    def of(self, words: str) -> str:
        """The words as the template writes them."""
        return words.lstrip(self.left).rstrip(self.right)


NO_TRIM = Trim()
"""Of a template that writes words as they are."""


def attempt(
    render: Render, roles: str, prompt: bool = False, *, words: Sequence[str] = WORDS
) -> str | None:
    """Render turns of the roles s, u, a with known words; None where the template refuses them.

    Args:
        render: Renders (turns, add_generation_prompt) to text.
        roles: The turns.
        prompt: Whether the assistant is asked at the end.
        words: What each turn says; it holds the known words of the turn.
    """
    turns = [{"role": _ROLES[role], "content": words[index]} for index, role in enumerate(roles)]
    try:
        text = render(turns, prompt)
    except ModelSupportError:  # it is too much for this machine, whatever the turns
        raise
    except Exception:  # a template is somebody's program: it may raise anything to refuse
        return None
    return text if all(text.count(WORDS[index]) == 1 for index in range(len(roles))) else None


def find_trims(render: Render) -> dict[str, Trim]:
    """What a template strips off the words of each role, of those that it strips."""
    trims = {
        role: Trim(
            _stripped(render, role, lambda space, word: space + word),
            _stripped(render, role, lambda space, word: word + space),
        )
        for role in _SHAPES
    }
    return {role: trim for role, trim in trims.items() if trim != Trim()}


def _stripped(render: Render, role: str, padded: Callable[[str, str], str]) -> str | None:
    """The characters that are not rendered where they stand beside a role's words."""
    roles, index = _SHAPES[role]
    bare, gone = attempt(render, roles), ""
    for space in _SPACES:
        words = [*WORDS]
        words[index] = padded(space, WORDS[index])
        if bare is not None and attempt(render, roles, words=words) == bare:
            gone += space
    return None if gone == _SPACES else gone


def drops_thoughts(render: Render) -> bool:
    """Whether a template leaves out what the assistant thought in an earlier turn."""
    for opening, closing in THOUGHTS:
        words = [*WORDS]
        words[1] = f"{opening}\n{WORDS[3]}\n{closing}\n\n{WORDS[1]}"
        text = attempt(render, "uau", words=words)
        if text is not None and WORDS[3] not in text:
            return True
    return False
