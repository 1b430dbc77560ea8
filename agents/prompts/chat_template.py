"""A chat template taken apart once: what stands before and after the words of each role's turn."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from unspoken.agents.prompts.chat_renderer import ChatRenderer
from unspoken.agents.prompts.template_probes import (
    NO_TRIM,
    WORDS,
    Render,
    Trim,
    attempt,
    drops_thoughts,
    find_trims,
)
from unspoken.agents.prompts.thoughts import CHANNELS, Thoughts, find_thoughts
from unspoken.agents.prompts.tool_turns import NO_TOOLS, Tools, ToolTurns, plain_tools, read_tools
from unspoken.channels.errors import InputError, ModelSupportError

if TYPE_CHECKING:
    from unspoken.agents.prompts.tokenizer import TextTokenizer


PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first and message['role'] != 'assistant' %}{{ '\n\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% endfor %}"
)
"""For models without a chat template: paragraphs, the assistant's words right after the prompt's.
"""

GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    | {"conversation", "chat_template", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
    | {"sanitize_control_tokens", "bos_token", "eos_token", "strftime_now", "raise_exception"}
)
"""Names that are not a user's to give to a chat template."""

_TIMES = re.compile(r"""strftime_now\(\s*(['"])([^'"\\\\{}]*)\1\s*\)""")

UNREADABLE = "its own chat template could not be taken apart: turns are plain paragraphs"
"""Said of a template whose own ids no turn has."""

LACKS_TOOLS = "it has no turns of tools: a call is a line of JSON, and a result a user turn"
"""Said of a template that cannot write the tools that an agent may call."""

DROPS = (
    "it drops the thoughts of earlier turns: an agent that takes another turn reads what follows "
    "its last thoughts again, unless it has thoughts: keep"
)
"""Said of a template that rewrites what an agent's state was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The text around the words of a turn.

    Attributes:
        opening: What stands before the first turn where no system prompt is given (BOS, a default
            system turn).
        system: What stands before and after a system prompt's words; None where the template has no
            system turn and the prompt goes before the first turn's words instead.
        inline_system: What stands before and after a system prompt's words where they stand in the
            first user turn, before its own; None where the template takes none there either.
        wrappers: Per role (``user``, ``assistant``, ``tool`` where it has such turns), what stands
            before and after its words.
        first: What stands before the words of the first user turn, after the opening.
        prompt: What asks for the assistant's words.
        merges: Whether the template refuses two user turns in a row, so that they are merged into
            one.
        plain: Whether this is the plain template of a model that brings none.
        trims: Per role (``system``, ``user``, ``assistant``), what it strips off the words, if any;
            ``inline``: off those of the first user turn that go on a system prompt.
        notes: What is unusual about it, in sentences for the plan.
        thoughts: How it marks thoughts; None where it names no markers of thoughts.
        tools: How it writes calls of tools and what they returned.
    """

    opening: str
    system: tuple[str, str] | None
    wrappers: Mapping[str, tuple[str, str]]
    first: str
    prompt: str
    inline_system: tuple[str, str] | None = None
    merges: bool = False
    plain: bool = False
    trims: Mapping[str, Trim] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    thoughts: Thoughts | None = None
    tools: ToolTurns = field(default_factory=ToolTurns)

    @property
    def thinks(self) -> bool:
        """Whether its model may think before it answers."""
        return self.thoughts is not None and not self.thoughts.ended

    def trim(self, role: str) -> Trim:
        """What it strips off the words of a role."""
        return self.trims.get(role, NO_TRIM)

    @property
    def turn_texts(self) -> tuple[str, ...]:
        """What it writes around turns."""
        system = (*(self.system or ()), *(self.inline_system or ()))
        wrappers = [text for pair in self.wrappers.values() for text in pair]
        return (self.opening, self.first, *system, *wrappers, *self.tools.texts)


def _between(text: str, left: int, right: int) -> str:
    return text.split(WORDS[left], 1)[1].split(WORDS[right], 1)[0]


def _after(text: str, index: int) -> str:
    return text.split(WORDS[index], 1)[1]


def read_template(render: Render, *, bos: str = "", plain: bool = False) -> ChatTemplate | None:
    """Take a template apart by rendering known words through it.

    Args:
        render: Renders (turns, add_generation_prompt) to text.
        bos: The text of the token the tokenizer starts every context with, empty for none.
        plain: Whether the template is ours.

    Returns:
        The parts, or None where even one user turn does not come through.
    """
    single = attempt(render, "u")
    if single is None:
        return None
    notes: list[str] = []
    before_first, user_after = single.split(WORDS[0], 1)
    user_before, assistant = _later_wrappers(render, before_first, user_after, notes)
    asked = attempt(render, "u", prompt=True) or single
    if not asked.startswith(single):
        notes.append("its generation prompt rewrites the turn before it")
    pair = attempt(render, "uu")
    merges = pair is None or not _between(pair, 0, 1).endswith(user_before)
    if merges:
        notes.append("it takes no two user turns in a row: they are merged into one")
    system, inline = _system(render, user_before, bos)
    if system is None:
        notes.append("it has no system turn: a system prompt goes before the first turn's words")
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
        inline_system=inline,
        plain=plain,
        trims=find_trims(render),
        notes=tuple(notes),
    )


def template_of(
    text: "TextTokenizer", arguments: Mapping[str, object] | None = None, tools: Tools = NO_TOOLS
) -> ChatTemplate:
    """The template that a tokenizer brings, taken apart; a plain one where it brings none.

    The tokenizer then counts what stands around its turns as markers.

    Args:
        text: The tokenizer.
        arguments: What the template is given besides the turns.
        tools: Schemas of the tools that the assistant may call.

    Raises:
        ModelSupportError: A tokenizer that cannot render even the plain one.
    """
    render = renderer_of(text, arguments, tools)
    parts = None if render is None else read_template(render, bos=text.bos)
    parts = None if render is None or parts is None else _with_tools(parts, render, text, tools)
    if tools and (parts is None or parts.tools.plain):
        template = template_of(text, arguments)
        lacks = () if template.plain else (LACKS_TOOLS,)
        return replace(template, tools=plain_tools(tools), notes=(*template.notes, *lacks))
    if render is not None and parts is not None:
        source, parts = source_of(text), _without_swallowed(parts, text)
        notes = [*parts.notes]
        if render.differs:
            notes.append("minijinja renders it otherwise: transformers renders it, in its bounds")
        if "strftime_now" in source:
            notes.append("it writes the date: of the day when a run starts")
        thoughts = find_thoughts(source, parts.prompt, dropped=drops_thoughts(render))
        if thoughts is not None and thoughts.dropped and not thoughts.ended:
            notes.append(DROPS)
        text.know(parts.turn_texts)
        text.know([parts.prompt], turns=False)
        if not text.marks_turns(parts.wrappers["user"][1] + parts.prompt):
            notes.append("it ends a turn with plain text, which words can spell")
        if tools:
            text.keep(parts.tools.call, parts.turn_texts)
        return replace(parts, notes=tuple(notes), thoughts=thoughts)
    plain = read_template(_plain_renderer(text), bos=text.bos, plain=True)
    if plain is None:
        raise ModelSupportError("the plain chat template could not be rendered")
    return (
        plain if render is None else replace(plain, plain=False, notes=(*plain.notes, UNREADABLE))
    )


def _with_tools(
    parts: ChatTemplate, render: ChatRenderer, text: "TextTokenizer", tools: Tools
) -> ChatTemplate:
    """A template with its turns of tools, where it has them."""
    source = source_of(text, tools=bool(tools))
    turns = None
    if "tool" in source and CHANNELS[0] not in source:
        turns = read_tools(render, parts.prompt, parts.wrappers["assistant"], tools)
    if turns is None:
        return parts
    return replace(
        parts,
        wrappers={**parts.wrappers, "tool": turns.result},
        trims={**parts.trims, "tool": Trim() if turns.encoded else turns.trim},
        tools=turns,
    )


def _without_swallowed(template: ChatTemplate, text: "TextTokenizer") -> ChatTemplate:
    """A template whose turns end without the space that the next turn's marker swallows."""
    if not all(map(text.swallows_space, (template.wrappers["user"][0], template.prompt))):
        return template

    def ended(around: tuple[str, str] | None) -> tuple[str, str] | None:
        return around and (around[0], around[1].rstrip())

    wrappers = {role: (one, other.rstrip()) for role, (one, other) in template.wrappers.items()}
    trims = dict(template.trims)
    system = ended(template.system)
    for role, around in (*wrappers.items(), ("system", system)):
        if around and not around[1]:
            trims[role] = Trim(template.trim(role).left, None)
    return replace(
        template, opening=template.opening.rstrip(), system=system, wrappers=wrappers, trims=trims
    )


def source_of(text: "TextTokenizer", *, tools: bool = False) -> str:
    """The chat template that a tokenizer brings, that for tools where it has one; else empty."""
    source = text.tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("tool_use" if tools and "tool_use" in source else "default")
    return str(source or "")


def renderer_of(
    text: "TextTokenizer", arguments: Mapping[str, object] | None = None, tools: Tools = NO_TOOLS
) -> ChatRenderer | None:
    """What renders turns with the template that a tokenizer brings; None where it brings none.

    Raises:
        InputError: An argument that is not to be given.
    """
    taken = sorted(GIVEN & set(arguments or {}))
    if taken:
        raise InputError(
            f"{taken[0]!r} cannot be an argument of a chat template",
            expected="an argument that the template reads besides the turns",
            fix="remove it",
        )
    source = source_of(text, tools=bool(tools))
    given = {**text.tokenizer.special_tokens_map, **(arguments or {})}
    given |= {"tools": list(tools)} if tools else {}
    return ChatRenderer(_at_one_time(source, text.loaded), given) if source else None


def _plain_renderer(text: "TextTokenizer") -> Render:
    """What renders turns with the template that is ours, and needs no bounds."""

    def render(turns: Sequence[Mapping[str, str]], prompt: bool) -> str:
        return str(
            text.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=PLAIN_TEMPLATE,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )

    return render


def times_written(source: str) -> frozenset[str]:
    """The forms in which a template writes the time."""
    return frozenset(found[2] for found in _TIMES.finditer(source))


def _at_one_time(source: str, time: datetime) -> str:
    """A template that writes one time, whenever it is rendered."""
    formats = times_written(source)
    if not formats:
        return source
    cases = "".join(
        "{% if format == " + repr(one) + " %}" + time.strftime(one) + "{% endif %}"
        for one in sorted(formats)
    )
    return "{% macro strftime_now(format) %}" + cases + "{% endmacro %}" + source


def _later_wrappers(
    render: Render, before_first: str, user_after: str, notes: list[str]
) -> tuple[str, tuple[str, str]]:
    """What stands before a later user turn, and around an assistant's."""
    two, three = attempt(render, "ua"), attempt(render, "uau")
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


def _system(
    render: Render, user_before: str, bos: str
) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """What stands around a system prompt that is a turn of its own, or inside the first turn."""
    text = attempt(render, "su")
    if text is None:
        return None, None
    before, middle = text.split(WORDS[0], 1)[0], _between(text, 0, 1)
    before = before if before.startswith(bos) else bos + before
    if middle.endswith(user_before):
        return (before, middle.removesuffix(user_before)), None
    return None, (before, middle)
