"""Every error the project raises on purpose.

::

    UnspokenError
    ├── InputError                what a person wrote is wrong (exit code 2)
    │   ├── WorkflowError         a workflow, in YAML or Python; lists all its problems
    │   ├── ModelReferenceError   a model reference that leads nowhere
    │   ├── TemplateError         a prompt, condition or output template
    │   ├── ModelSupportError     a model that cannot do what is asked of it
    │   └── ContextLengthError    more tokens than the model's context holds
    ├── ChannelError              an edge cannot carry what it was given
    │   ├── BridgeError           a bridge that is broken, missing or unfit
    │   ├── IdentityMismatch      a state made by other weights
    │   ├── GeometryMismatch      a state of another shape, dtype or device
    │   ├── PacketError           bytes that are no whole, genuine packet; its kind says why
    │   ├── ProfileError          a profile of a pair of fine-tunes that is broken or missing
    │   └── StateError            positions that are missing, overlap or were trimmed
    └── RunError                  a run failed (exit code 1); names agent and edge
        ├── AgentError            an agent's turn raised
        ├── RunTimeout            an agent or the whole run took too long
        ├── RunWaiting            a run waits for a person (exit code 3); names its questions
        └── StoreError            a store of runs, or a run in it, that cannot be used
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AgentError",
    "BridgeError",
    "ChannelError",
    "ContextLengthError",
    "GeometryMismatch",
    "IdentityMismatch",
    "InputError",
    "ModelReferenceError",
    "ModelSupportError",
    "PacketError",
    "Problem",
    "ProfileError",
    "RunError",
    "RunTimeout",
    "RunWaiting",
    "StateError",
    "StoreError",
    "TemplateError",
    "UnspokenError",
    "WorkflowError",
]


class UnspokenError(Exception):
    """What was found, what was expected, and how to fix it.

    Args:
        found: What is wrong, as one sentence that names the thing.
        expected: What would have been right; candidates are listed here.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = found, expected, fix
        super().__init__(found)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class InputError(UnspokenError):
    """What a person wrote is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a workflow.

    Attributes:
        message: What was found.
        where: The path in the workflow, such as ``agents.solver.prompt``.
        expected: What would have been right.
        fix: What to do about it.
        file: The file's name, empty for a workflow written in Python.
        line: Counted from 1; 0 where unknown.
        column: Counted from 1; 0 where unknown.
        inner_line: Line inside of the text at ``where``, counted from 1; 0 where unknown.
    """

    message: str
    where: str = ""
    expected: str = ""
    fix: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    inner_line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else ""
        path = f"{self.where}: " if self.where else ""
        rest = "".join(
            f"\n    {label}: {text}"
            for label, text in (("expected", self.expected), ("fix", self.fix))
            if text
        )
        return f"{place}{path}{self.message}{rest}"


class WorkflowError(InputError):
    """A workflow with one or more problems, all of them listed.

    Attributes:
        problems: Every problem found, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ModelReferenceError(InputError):
    """A model reference that names no available model."""


class TemplateError(InputError):
    """A prompt, condition or output template that cannot be rendered.

    Attributes:
        line: Its line that is at fault, counted from 1; 0 where unknown.
    """

    line: int = 0


class ModelSupportError(InputError):
    """A model that cannot do what is asked of it."""


class ContextLengthError(InputError):
    """More tokens than the model's context holds."""


class ChannelError(UnspokenError):
    """An edge cannot carry what it was given."""


class BridgeError(ChannelError):
    """A bridge that is broken, missing or unfit for what is asked of it."""


class IdentityMismatch(ChannelError):
    """A state or bridge that belongs to other weights.

    Attributes:
        field: The field of the identity that differs.
    """

    def __init__(self, found: str, *, field: str, expected: str = "", fix: str = "") -> None:
        self.field = field
        super().__init__(found, expected=expected, fix=fix)


class GeometryMismatch(ChannelError):
    """A state of another shape, dtype or device than the model's."""


class PacketError(ChannelError):
    """Bytes that are not a whole and genuine packet.

    Attributes:
        kind: ``format``, ``version``, ``truncated``, ``size``, ``key``, ``unsigned``, ``tampered``,
            ``bound``, ``expired`` or ``shape``.
    """

    def __init__(self, found: str, *, kind: str, expected: str = "", fix: str = "") -> None:
        self.kind = kind
        super().__init__(found, expected=expected, fix=fix)


class ProfileError(ChannelError):
    """A profile that is broken, missing or another pair's."""


class StateError(ChannelError):
    """Positions that are missing, overlap, or were trimmed away."""


class RunError(UnspokenError):
    """A run failed.

    Attributes:
        agent: The agent whose turn failed, empty where none is to blame.
        edge: The edge, as ``sharer -> receiver``, empty where none is to blame.
        partial: The `RunResult` of what had finished, without outputs; None before a run began.
    """

    def __init__(
        self, found: str, *, agent: str = "", edge: str = "", expected: str = "", fix: str = ""
    ) -> None:
        self.agent, self.edge = agent, edge
        self.partial: Any = None
        super().__init__(found, expected=expected, fix=fix)


class AgentError(RunError):
    """An agent's turn raised; the cause is chained."""


class RunTimeout(RunError):
    """An agent or the whole run took longer than its timeout."""


class RunWaiting(RunError):
    """A run waits for a person, and goes on where it is once somebody has answered.

    Attributes:
        run_id: The run.
        questions: What it asks, each an `unspoken.agents.runs.Question`.
    """

    exit_code = 3

    def __init__(self, run_id: str, questions: Sequence[Any]) -> None:
        self.run_id, self.questions = run_id, tuple(questions)
        asked = "; ".join(f"{one.id} ({one.kind})" for one in self.questions)
        super().__init__(
            f"run {run_id} waits for a person: {asked}",
            fix=f"answer it: unspoken runs answer {run_id} TEXT, or flow.resume(run_id, answer)",
        )


class StoreError(RunError):
    """A store of runs, or a run in it, that cannot be read, written or gone on with.

    Attributes:
        kind: ``missing``, ``locked``, ``version``, ``broken``, ``full``, ``different`` or ``over``.
    """

    def __init__(self, found: str, *, kind: str, expected: str = "", fix: str = "") -> None:
        self.kind = kind
        super().__init__(found, expected=expected, fix=fix)
