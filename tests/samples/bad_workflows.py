"""Workflows that are wrong, each with the message it earns and the line that is at fault.

The tests hold the loader to this table, and the documentation prints it.
"""

from dataclasses import dataclass, replace

GOOD = """\
name: reader-solver
models:
  small: embedded:smollm2-135m-instruct
inputs:
  document: text
  rows: {type: list, default: [a, b]}
agents:
  reader:
    model: small
    prompt: "{{ inputs.document }}"
    generate: none
  solver:
    model: small
    prompt: "Question: {{ reader.text }}"
    generate: {max_new_tokens: 24}
    max_turns: 2
  critic:
    model: small
    prompt: "Improve: {{ solver.text }}"
edges:
  - {from: reader, to: solver, share: prompt}
  - {from: solver, to: critic}
  - {from: critic, to: solver, loop: true, when: "'no' in critic.text"}
outputs:
  answer: "{{ solver.text }}"
"""


@dataclass(frozen=True)
class BadWorkflow:
    """A text, what the loader says of it (``message`` is a part of that), and on which line."""

    name: str
    text: str
    message: str
    line: int


def _changed(name: str, old: str, new: str, message: str, line: int) -> BadWorkflow:
    if old not in GOOD:
        raise ValueError(f"{old!r} is not in the good workflow")
    return BadWorkflow(name, GOOD.replace(old, new, 1), message, line)


def _edge(name: str, keys: str, message: str) -> BadWorkflow:
    return _changed(name, "to: critic}", f"to: critic, {keys}}}", message, 22)


_NESTED = "a: " + "[" * 40 + "]" * 40 + "\n"
_BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def _shape(name: str, generate: str, message: str, read: str = "{{ solver.text }}") -> BadWorkflow:
    text = GOOD.replace("{max_new_tokens: 24}", f"{{{generate}}}", 1)
    return BadWorkflow(name, text.replace("Improve: {{ solver.text }}", read, 1), message, 15)


_TEAM = "schema: {type: object, properties: {team: {enum: [a, b]}}}"

BAD_WORKFLOWS: tuple[BadWorkflow, ...] = (
    # YAML
    BadWorkflow("empty file", "", "the file is empty", 1),
    BadWorkflow("only a comment", "# to do\n", "the file is empty", 1),
    BadWorkflow("list instead of mapping", "- a\n- b\n", "the file holds a list", 1),
    BadWorkflow("text instead of mapping", "reader\n", "the file holds the text 'reader'", 1),
    _changed("tab", "  reader:\n", "\treader:\n", "a tab stands where indentation", 8),
    _changed("indentation", "    model: small", "   model: small", "not valid YAML", 10),
    _changed("duplicate key", "inputs:", "models:", "key 'models' is given twice", 4),
    _changed("Python tag", "text", "!!python/object:os.system x", "is not allowed", 5),
    _changed("own tag", "generate: none", "generate: !none", "tag '!none' is not allowed", 11),
    _changed("false tag", "embedded:smollm2-135m-instruct", "!!int x", "is not of type int", 3),
    _changed("unknown alias", "document: text", "document: *text", "'*text' has no anchor", 5),
    BadWorkflow("self-containing", "a: &a [*a]\n", "stands inside its own anchor", 1),
    BadWorkflow("alias bomb", _BOMB, "more than 20000 values", 8),
    BadWorkflow("merge of no mapping", "a: &a x\nb: {<<: *a}\n", "takes in what is no mapping", 2),
    BadWorkflow("many aliases", "a: &a x\nb: [" + "*a, " * 1100 + "]", "more than 1000 aliases", 2),
    BadWorkflow("deep nesting", _NESTED, "more than 32 levels of nesting", 1),
    BadWorkflow("two documents", GOOD + "---\nname: b\n", "a second document starts", 26),
    BadWorkflow(
        "control character", "name: a\x00b\n", "character U+0000 is not allowed in YAML", 1
    ),
    BadWorkflow("half a character", 'name: "\\ud800"\n', "half of a surrogate pair", 1),
    _changed("unquoted template", '"{{ inputs.document }}"', "{{ x }}", "braces stand where", 10),
    _changed("number as key", "solver:\n", "7:\n", "key 7 is not text", 12),
    _changed(
        "unclosed quote",
        'answer: "{{ solver.text }}"',
        'answer: "{{',
        "a quote is never closed",
        25,
    ),
    # Keys and values
    _changed("unknown key", "share:", "shar:", "did you mean 'share'?", 21),
    _changed("unknown top key", "outputs:", "output:", "did you mean 'outputs'?", 24),
    _changed("key of a later version", "name:", "plugins: x\nname:", "unknown key 'plugins'", 1),
    _changed("bridges", "name:", "bridges: fitt\nname:", "did you mean 'fit'?", 1),
    _changed("memory", "name:", "memory: 2 GBs\nname:", "'2 GBs' is no size", 1),
    _edge("channel", "channel: projected", "did you mean 'projected_cache'?"),
    _edge("retention in percent", "min_retention: 80", "expected: 1 or less"),
    _edge("negative retention", "min_retention: -0.5", "expected: 0 or more"),
    _edge("layers in the wrong order", "recompute: [[4, 9], [1, 2]]", "the range of layers [1, 2]"),
    _edge("negative bound", "max_kl: -1", "expected: 0 or more"),
    _edge("unknown codec", "codec: int2", "'int8'"),
    _edge("text for retention", "min_retention: '0.5'", "expected: a number"),
    _edge("budget beside sink", "repair: {budget: 50, sink: 8}", "repair has a budget beside sink"),
    _edge("fuse without a bridge", "fuse: true", "fuse stands on an edge with channel auto"),
    _changed("missing name", "name: reader-solver", "", "key 'name' is missing", 2),
    _changed("missing prompt", '    prompt: "Impr', '    system: "Impr', "'prompt' is missing", 17),
    _changed("missing end", ", to: critic}", "}", "key 'to' is missing", 22),
    _changed("choice", "share: prompt", "share: promt", "did you mean 'prompt'?", 21),
    _changed("text for number", "24", "'24'", "expected: a whole number", 15),
    _changed("negative number", "24", "-1", "expected: 1 or more", 15),
    _changed("number for text", "reader-solver", "7", 'put it in quotes: "7"', 1),
    _changed("text for flag", "loop: true", "loop: yes", "expected: true or false", 23),
    _changed(
        "mapping or none", "generate: none", "generate: off", "a mapping of keys, or none", 11
    ),
    _changed("default of input", "default: [a, b]", "default: 3", "is not of type list", 6),
    _changed("input type", "document: text", "document: string", "not one of the choices", 5),
    _changed(
        "device",
        "embedded:smollm2-135m-instruct",
        "{ref: a, device: my gpu}",
        "'my gpu' is not a device",
        3,
    ),
    _changed(
        "device map",
        "embedded:smollm2-135m-instruct",
        "{ref: a, device: {map: best}}",
        "{'map': 'best'} is not a device",
        3,
    ),
    _changed("name with a dash", "  critic:", "  my-critic:", "'my-critic' cannot be a name", 17),
    _changed("reserved name", "  critic:", "  inputs:", "cannot be an agent's name", 17),
    # Shapes
    _shape("unknown schema keyword", "schema: {not: {}}", "Unimplemented keys"),
    _shape("schema of no mapping", "schema: number", "a JSON schema as a mapping"),
    _shape("two shapes", "choices: [a, b], regex: 'a|b'", "choices and regex are given"),
    _shape("choice twice", "choices: [a, a]", "a choice is given twice"),
    _shape("regex with look-ahead", "regex: '(?=a)b'", "look-ahead"),
    _shape("stop beside a shape", f"{_TEAM}, stop: x", "stop stands beside schema"),
    replace(
        _shape("field of no answer", _TEAM, "is not in the schema", "{{ solver.data.taem }}"),
        line=19,
    ),
    _changed("data of words", 'solver.text }}"\nedges', 'solver.data }}"\nedges', "in words", 19),
    # Names and edges
    _changed("unknown model", "model: small", "model: smal", "did you mean 'small'?", 9),
    _changed("unknown sharer", "from: reader", "from: raeder", "did you mean 'reader'?", 21),
    _changed("unknown receiver", "to: critic", "to: judge", "there is no agent 'judge'", 22),
    _changed("edge to itself", "to: critic", "to: solver", "'solver' to itself", 22),
    _changed("output of a mere reader", "share: prompt", "share: output", "no output to share", 21),
    _changed(
        "edge twice",
        "to: critic}\n",
        "to: critic}\n  - {from: solver, to: critic}\n",
        "edges[1] already shares the output",
        23,
    ),
    _changed("cycle", "loop: true", "loop: false", "cycle solver -> critic -> solver", 23),
    _changed("loop without cycle", "share: prompt", "loop: true", "closes no cycle", 21),
    _changed("loop without a limit", "    max_turns: 2\n", "", "no max_turns", 12),
    BadWorkflow("no agents", "name: a\nmodels: {}\nagents: {}\n", "has no agents", 3),
    # Templates
    _changed("template syntax", "reader.text }}", "reader.text }", "of the template", 14),
    _changed("unknown input", "inputs.document", "inputs.documnt", "'inputs.document'?", 10),
    _changed("unknown agent", "reader.text", "raeder.text", "did you mean 'reader.text'?", 14),
    _changed("agent without edge", "inputs.document", "critic.text", "no edge to this agent", 10),
    _changed("unknown attribute", "reader.text", "reader.txt", "did you mean 'reader.text'?", 14),
    _changed("whole agent", "reader.text", "reader", "'reader' is not text by itself", 14),
    _changed("input without inputs.", "inputs.document", "document", "'inputs.document'?", 10),
    _changed("unknown filter", "inputs.document", "inputs.document | uper", "'upper'?", 10),
    _changed("item without for_each", "reader.text", "item", "only known with for_each", 14),
    _changed(
        "for_each over text",
        "max_turns: 2",
        "max_turns: 2\n    for_each: inputs.document",
        "is not a list input",
        17,
    ),
    _changed(
        "agent in system",
        "max_turns: 2",
        'max_turns: 2\n    system: "{{ reader.text }}"',
        "a system prompt reads inputs only",
        17,
    ),
    _changed(
        "condition in braces",
        "\"'no' in critic.text\"",
        '"{{ critic.text }}"',
        "remove the {{ and }}",
        23,
    ),
    _changed("condition of another", "'no' in critic.text", "reader.text", "sharer only", 23),
    _changed("output of no agent", 'answer: "{{ solver', 'answer: "{{ solvr', "'solver.text'?", 25),
)
