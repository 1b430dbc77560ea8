"""Whether composed turns have the very ids that the model's chat template gives."""

from collections.abc import Mapping
from dataclasses import replace

from unspoken.agents.prompts.chat_template import UNREADABLE, renderer_of, template_of
from unspoken.agents.prompts.context import ChatTurn, ContextBuilder, Quote
from unspoken.agents.prompts.template_probes import Render
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.prompts.tool_turns import NO_TOOLS, Tools
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message

_Talk = tuple[tuple[str, str], ...]

_SHAPES: Mapping[str, tuple[str | None, _Talk]] = {
    "one turn": (None, (("user", "Who wrote it?"),)),
    "a system prompt": ("Be short.", (("user", "Who wrote it?"),)),
    "several turns": (None, (("user", "Who wrote it?"), ("assistant", "Ada."), ("user", "When?"))),
    "two user turns in a row": (None, (("user", "Who wrote it?"), ("user", "When?"))),
    "words with space at their ends": (None, (("user", "  Who wrote it?\n"),)),
    "words that begin with a line break": (None, (("user", "\n\nWho wrote it? "),)),
    "an answer with space at its ends": (
        None,
        (("user", "Who?"), ("assistant", "\n Ada. \n"), ("user", "When?")),
    ),
    "words in lines": (None, (("user", "# Notes\n\n- 1887,  漢字\n- é 🙂"),)),
    "an empty turn": (None, (("user", ""),)),
}


def context_builder_of(
    text: TextTokenizer, arguments: Mapping[str, object] | None = None, tools: Tools = NO_TOOLS
) -> ContextBuilder:
    """What composes contexts of a model; its template's notes say where it departs from it.

    Args:
        text: The model's tokenizer.
        arguments: What its chat template is given besides the turns.
        tools: Schemas of the tools that the assistant may call, as transformers' ``tools``.

    Raises:
        ModelSupportError: A tokenizer that cannot render even a plain template.
    """
    template = template_of(text, arguments, tools)
    builder = ContextBuilder(text, replace(template, tools=replace(template.tools, told="")))
    render = renderer_of(text, arguments, () if template.tools.plain else tools)
    if render is None or UNREADABLE in template.notes:
        return ContextBuilder(text, template)
    unlike = differences(builder, render)
    if not unlike:
        return ContextBuilder(text, template)
    note = f"its own tokens differ from those composed for {', '.join(unlike)}"
    return ContextBuilder(text, replace(template, notes=(*template.notes, note)))


def differences(builder: ContextBuilder, render: Render) -> tuple[str, ...]:
    """Name the kinds of conversations whose ids are not those of the chat template.

    A conversation that the template refuses is none of them.

    Args:
        builder: Composes contexts.
        render: Renders (turns, add_generation_prompt) to text.
    """
    unlike = [
        name
        for name, (system, talk) in _SHAPES.items()
        if _wanted(builder, render, system, talk) not in (None, _composed(builder, system, talk))
    ]
    talk = (("user", "Say:\nWho wrote it?\nand more."),)
    expected = _wanted(builder, render, None, talk)
    if expected not in (None, _quoted(builder)):
        unlike.append("a message inside a prompt")
    return tuple(unlike)


def _wanted(
    builder: ContextBuilder, render: Render, system: str | None, talk: _Talk
) -> tuple[int, ...] | None:
    """The template's ids; None where it refuses the conversation."""
    turns = [{"role": role, "content": words} for role, words in talk]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    try:
        text = render(turns, True)
    except ModelSupportError:
        raise
    except Exception:  # a template is somebody's program: it may raise anything to refuse
        return None
    bos = builder.text.bos
    return builder.text.encode(text if text.startswith(bos) else bos + text)


def _composed(builder: ContextBuilder, system: str | None, talk: _Talk) -> tuple[int, ...]:
    turns = [ChatTurn(role, (words,)) for role, words in talk]
    return builder.compose(turns, system=system).ids + builder.ask()


def _quoted(builder: ContextBuilder) -> tuple[int, ...]:
    """A user's turn that another turn's words stand in."""
    said = builder.compose([ChatTurn("user", ("Who wrote it?",))])
    identity = ModelIdentity("", "", builder.text.digest)
    message = Message(
        sharer="reader",
        segments=said.segments[-1:],
        whole=False,
        context=said.ids,
        identity=identity,
    )
    pieces = ("Say:\n", Quote(message, message.segments[0]), "\nand more.")
    return builder.compose([ChatTurn("user", pieces)]).ids + builder.ask()
