"""Turns of tools: how a template writes a call, and what the tool returned.

A call is what the assistant says, so it is sampled, and its ids stay as they are. A template is
asked what stands around the call's name and arguments, so that a grammar may hold a model to it,
and around a result. Where it has no such turns, a call is a line of JSON and a result a user turn.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from unspoken.agents.prompts.template_probes import WORDS, Trim
from unspoken.agents.prompts.thoughts import Reader
from unspoken.channels.errors import ModelSupportError

ToolRender = Callable[[Sequence[Mapping[str, object]], bool], str]

Tools = Sequence[Mapping[str, object]]
"""Per tool its JSON schema, as OpenAI's and transformers' ``tools`` have it."""

NO_TOOLS: Tools = ()

FIRST_ID = "call00001"

_NAME, _KEY, _VALUE = "q4zq", "q6zq", "q7zq"
_ID = "q5zq00000"
"""Some templates take no identifier but of nine letters and digits."""

_TOLD = (
    "You can call these tools, one at a time. To call one, write nothing but one line of JSON:\n"
    '{"name": "<name of the tool>", "arguments": {"<argument>": <value>}}\n\n'
)
_RETURNED = "The tool {name} returned:\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        name: The tool's name.
        arguments: Its arguments by name, as JSON has them.
        id: Nine letters and digits that name the call where a template writes one.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    id: str = FIRST_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTurns:
    """The text around the parts of a call, and around what a tool returned.

    A name and an identifier that a template repeats in it are placeholders; `call_texts` and
    `around` fill them in.

    Attributes:
        call: What stands before a call's name, between name and arguments, and behind these.
        result: What stands before and after a result's words.
        inner: What stands after a result that another one follows, and before that one.
        prompt: What asks for the assistant's words after a result; None as after a user's turn.
        encoded: Whether a result's words stand inside a JSON string.
        trim: What the template strips off a result's words.
        told: What tells the model of its tools before the system prompt; empty where the template
            writes them itself.
        plain: Whether the template has no turns of tools, so that results are user turns.
    """

    call: tuple[str, str, str] = ('{"name": "', '", "arguments": ', "}")
    result: tuple[str, str] = ("", "")
    inner: tuple[str, str] = ("", "")
    prompt: str | None = None
    encoded: bool = False
    trim: Trim = field(default_factory=Trim)
    told: str = ""
    plain: bool = True

    def call_texts(self, name: str, id: str = FIRST_ID) -> tuple[str, str]:
        """What stands before the arguments of a call of `name`, as JSON, and behind them."""
        call = ToolCall(name=name, id=id)
        before, between, behind = (_filled(text, call) for text in self.call)
        return before + name + between, behind

    def written(self, call: ToolCall) -> str:
        """The assistant's words for a call."""
        before, behind = self.call_texts(call.name, call.id)
        return before + json.dumps(dict(call.arguments), ensure_ascii=False) + behind

    def read(self, words: str, text: Reader) -> ToolCall | None:
        """The first call in an assistant's words; None where there is none.

        Args:
            words: The words; special tokens may be missing from them.
            text: Reads the template's markers.
        """
        before, between, _ = (text.decode(text.encode(one, "")) for one in self.call)
        if "{" not in before:
            _, begun, rest = words.partition(before) if before else ("", True, words)
            name, brace, arguments = rest.partition("{")
            read = _object_at(brace + arguments)
            if not begun or read is None or not name.endswith(between):
                return None
            return ToolCall(name=name.removesuffix(between).strip(), arguments=read)
        start = words.find("{")
        while start >= 0:
            call = _object_at(words[start:]) or {}
            called, given = call.get("name"), call.get("arguments", call.get("parameters"))
            if isinstance(called, str) and isinstance(given, dict):
                return ToolCall(name=called, arguments=given)
            start = words.find("{", start + 1)
        return None

    def around(self, number: int, count: int, call: ToolCall) -> tuple[str, str]:
        """What stands before and after result `number` of `count` results in a row."""
        before = self.result[0] if number == 0 else self.inner[1]
        after = self.result[1] if number == count - 1 else self.inner[0]
        return _filled(before, call), _filled(after, call)

    def result_words(self, words: str) -> str:
        """A result's words as the template writes them."""
        return json.dumps(self.trim.of(words), ensure_ascii=False)[1:-1] if self.encoded else words

    def introduced(self, system: str | None) -> str | None:
        """A system prompt that tells of the tools, where the template does not."""
        return "\n\n".join(filter(None, (self.told, system))) or system

    @property
    def texts(self) -> tuple[str, ...]:
        """What it writes around results."""
        return (*self.result, *self.inner, self.prompt or "")


def returned(name: str) -> str:
    """What a user turn says before a result, where a template has no turns of tools."""
    return _RETURNED.format(name=name)


def plain_tools(tools: Tools) -> ToolTurns:
    """Turns of tools for a template that has none.

    Args:
        tools: Schemas of the tools.
    """
    told = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return ToolTurns(told=_TOLD + told if tools else "")


def read_tools(
    render: ToolRender, prompt: str, assistant: tuple[str, str], tools: Tools = ()
) -> ToolTurns | None:
    """How a template writes turns of tools; None where it has none that can be followed.

    Args:
        render: Renders (turns, add_generation_prompt) to text.
        prompt: What asks for the assistant's words after a user's turn.
        assistant: What stands before and after an assistant's words.
        tools: The tools that it is given, which it must then write.
    """
    user: dict[str, object] = {"role": "user", "content": WORDS[0]}
    asked = _rendered(render, [user])
    for arguments in ({_KEY: _VALUE}, json.dumps({_KEY: _VALUE})):
        said = [user, _calling(arguments)]
        one = _rendered(render, [*said, _result(WORDS[2])])
        if one is not None:
            break
    if asked is None or one is None:
        return None
    # A call goes on from the prompt, or from what opens an answer: a prompt may end thoughts too.
    opened = next(filter(one.startswith, (asked + prompt, asked + assistant[0])), None)
    if opened is None:
        return None
    if not all(_name_of(tool) in asked for tool in tools):
        return None
    before, found, after = one.removeprefix(opened).partition(WORDS[2])
    call = _call_parts(before, assistant[1]) if found else None
    two = _rendered(render, [*said, _result(WORDS[2]), _result(WORDS[3])])
    if call is None or two is None or not two.partition(WORDS[3])[1]:
        return None
    between = two.partition(WORDS[2])[2].partition(WORDS[3])[0]
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(between, after, strict=False))
    same = sum(1 for _ in alike)
    then = _rendered(render, [*said, _result(WORDS[2])], prompt=True) or ""
    follows = then.removeprefix(one) if then.startswith(one) else prompt
    turns = ToolTurns(
        call=call[:3],
        result=(call[3], after),
        inner=(between[:same], between[same:]),
        prompt=None if follows == prompt else follows,
        plain=False,
    )
    return _with_words(turns, lambda words: _rendered(render, [*said, _result(words)]))


def _with_words(turns: ToolTurns, result: Callable[[str], str | None]) -> ToolTurns | None:
    """What becomes of a result's words: encoded, stripped, or neither."""
    quoted, padded = result(f'{WORDS[2]}"{WORDS[3]}'), result(f"\n {WORDS[2]} \n")
    if quoted is None or padded is None:
        return None
    encoded = f'{WORDS[2]}\\"{WORDS[3]}' in quoted
    if not encoded and f'{WORDS[2]}"{WORDS[3]}' not in quoted:
        return None
    space = "\\n" if encoded else "\n"
    left = "" if f"{space} {WORDS[2]}" in padded else None
    right = "" if f"{WORDS[2]} {space}" in padded else None
    return replace(turns, encoded=encoded, trim=Trim(left, right))


def _call_parts(text: str, closing: str) -> tuple[str, str, str, str] | None:
    """A call and what follows, up to a result's words: around name and arguments, and after."""
    before, named, rest = text.partition(_NAME)
    start = rest.rfind("{", 0, rest.find(_KEY))
    if not named or _KEY not in rest or start < 0 or not closing:
        return None
    try:
        given, end = json.JSONDecoder().raw_decode(rest[start:])
    except ValueError:
        return None
    behind, closed, then = rest[start + end :].partition(closing)
    if given != {_KEY: _VALUE} or not closed:
        return None
    return before, rest[:start], behind, then


def _calling(arguments: object) -> dict[str, object]:
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _result(words: str) -> dict[str, object]:
    return {"role": "tool", "name": _NAME, "tool_call_id": _ID, "content": words}


def _rendered(
    render: ToolRender, turns: Sequence[Mapping[str, object]], *, prompt: bool = False
) -> str | None:
    try:
        return render(turns, prompt)
    except ModelSupportError:  # it is too much for this machine, whatever the turns
        raise
    except Exception:  # a template is somebody's program: it may raise anything to refuse
        return None


def _name_of(tool: object) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _filled(text: str, call: ToolCall) -> str:
    return text.replace(_NAME, call.name).replace(_ID, call.id)


def _object_at(text: str) -> dict[str, object] | None:
    """The JSON object that a text begins with, if any."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
