"""A chat template taken apart once: what stands before and after the words of each role's turn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from unspoken.channels.errors import ModelSupportError

if TYPE_CHECKING:
    from unspoken.agents.prompts.tokenizer import TextTokenizer

__all__ = ["PLAIN_TEMPLATE", "ChatTemplate", "read_template", "template_of"]

Render = Callable[[Sequence[Mapping[str, str]], bool], str]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first and message['role'] != 'assistant' %}{{ '\n\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% endfor %}"
)
"""For models without a chat template: paragraphs, the assistant's words right after the prompt's.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The text around the words of a turn.

    Attributes:
        opening: What stands before the first turn where no system prompt is given (BOS, a default
            system turn).
        system: What stands before and after a system prompt's words; None where the template has no
            system turn and the prompt goes before the first turn's words instead.
        wrappers: Per role (``user``, ``assistant``), what stands before and after its words.
        first: What stands before the words of the first user turn, after the opening.
        prompt: What asks for the assistant's words.
        merges: Whether the template refuses two user turns in a row, so that they are merged into
            one.
        plain: Whether this is the plain template of a model that brings none.
        notes: What is unusual about it, in sentences for the plan.
    """

    opening: str
    system: tuple[str, str] | None
    wrappers: Mapping[str, tuple[str, str]]
    first: str
    prompt: str
    merges: bool = False
    plain: bool = False
    notes: tuple[str, ...] = field(default=())


_WORDS = ("q0zq", "q1zq", "q2zq", "q3zq")


def _attempt(render: Render, roles: str, prompt: bool = False) -> str | None:
    """Render turns of the roles s, u, a with known words; None where the template refuses them."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = [{"role": names[role], "content": _WORDS[index]} for index, role in enumerate(roles)]
    try:
        text = render(turns, prompt)
    except Exception:  # a template is somebody's program: it may raise anything to refuse
        return None
    return text if all(text.count(_WORDS[index]) == 1 for index in range(len(roles))) else None


def _between(text: str, left: int, right: int) -> str:
    return text.split(_WORDS[left], 1)[1].split(_WORDS[right], 1)[0]


def _after(text: str, index: int) -> str:
    return text.split(_WORDS[index], 1)[1]


def read_template(render: Render, *, bos: str = "", plain: bool = False) -> ChatTemplate | None:
    """Take a template apart by rendering known words through it.

    Args:
        render: Renders (turns, add_generation_prompt) to text.
        bos: The text of the token the tokenizer starts every context with, empty for none.
        plain: Whether the template is ours.

    Returns:
        The parts, or None where even one user turn does not come through.
    """
    single = _attempt(render, "u")
    if single is None:
        return None
    notes: list[str] = []
    before_first, user_after = single.split(_WORDS[0], 1)
    user_before, assistant = _later_wrappers(render, before_first, user_after, notes)
    asked = _attempt(render, "u", prompt=True) or single
    if not asked.startswith(single):
        notes.append("its generation prompt rewrites the turn before it")
    pair = _attempt(render, "uu")
    merges = pair is None or not _between(pair, 0, 1).endswith(user_before)
    if merges:
        notes.append("it takes no two user turns in a row: they are merged into one")
    system = _system(render, user_before)
    if system is None:
        notes.append("it has no system turn: a system prompt goes before the first turn's words")
    elif not system[0].startswith(bos):
        system = (bos + system[0], system[1])
    # A template that only separates turns puts nothing before the first: what stands there is then
    # all opening.
    first = user_before if before_first.endswith(user_before) else ""
    opening = before_first.removesuffix(first)
    return ChatTemplate(
        opening=opening if opening.startswith(bos) else bos + opening,
        system=system,
        wrappers={"user": (user_before, user_after), "assistant": assistant},
        first=first,
        prompt=asked.removeprefix(single) if asked.startswith(single) else "",
        merges=merges,
        plain=plain,
        notes=tuple(notes),
    )


def template_of(text: "TextTokenizer") -> ChatTemplate:
    """The template that a tokenizer brings, taken apart; a plain one where it brings none.

    Raises:
        ModelSupportError: A tokenizer that cannot render even the plain one.
    """
    source = text.tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if source:
        parts = read_template(_renderer(text, source), bos=text.bos)
        if parts is not None:
            return parts
    plain = read_template(_renderer(text, PLAIN_TEMPLATE), bos=text.bos, plain=True)
    if plain is None:
        raise ModelSupportError("the plain chat template could not be rendered")
    if source:
        note = "its own chat template could not be taken apart: turns are plain paragraphs"
        return replace(plain, plain=False, notes=(*plain.notes, note))
    return plain


def _renderer(text: "TextTokenizer", source: str) -> Render:
    def render(turns: Sequence[Mapping[str, str]], prompt: bool) -> str:
        return str(
            text.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )

    return render


def _later_wrappers(
    render: Render, before_first: str, user_after: str, notes: list[str]
) -> tuple[str, tuple[str, str]]:
    """What stands before a later user turn, and around an assistant's."""
    two, three = _attempt(render, "ua"), _attempt(render, "uau")
    if two is None or three is None:
        notes.append("it shows no conversation of several turns")
        return before_first, ("", "")
    after = _after(two, 1)
    assistant = (_between(three, 0, 1).removeprefix(user_after), after)
    if _between(two, 0, 1) != _between(three, 0, 1):
        notes.append("it opens an assistant turn differently once another turn follows")
    middle = _between(three, 1, 2)
    if not middle.startswith(after):
        notes.append("it closes an assistant turn differently once another turn follows")
        return before_first, assistant
    return middle.removeprefix(after), assistant


def _system(render: Render, user_before: str) -> tuple[str, str] | None:
    text = _attempt(render, "su")
    if text is None:
        return None
    middle = _between(text, 0, 1)
    if not middle.endswith(user_before):
        return None
    return text.split(_WORDS[0], 1)[0], middle.removesuffix(user_before)
