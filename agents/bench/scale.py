"""How much each benchmark measures, how long that takes, and what is left out on request."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.errors import InputError

__all__ = ["SCALES", "Scale", "forecast", "reduced", "sized"]

MACHINE = "two cores of an AMD EPYC (AVX2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much a benchmark measures; its ``measure`` takes ``count``, and ``only`` where it has
    `parts`.

    Attributes:
        unit: What ``--rows`` counts, in the plural.
        rows: How many the published figures have.
        quick: How many ``--quick`` takes.
        least: The fewest that give figures.
        once_s: Seconds of what is done once, with the model that is measured by default. None
            where they are not known.
        row_s: Seconds of each row.
        parts: What ``--only`` may name; empty where all of it is one.
    """

    unit: str
    rows: int
    quick: int
    least: int = 1
    once_s: float | None = None
    row_s: float = 0.0
    parts: tuple[str, ...] = ()

    def said(self, rows: int) -> str:
        """So many rows, and for about how long, in words."""
        size = f"{rows:,} {self.unit.removesuffix('s') if rows == 1 else self.unit}"
        if self.once_s is None:
            return size
        return f"{size}, about {_minutes(self.once_s + rows * self.row_s)} on {MACHINE}"

    def asked(self, rows: int | None, *, quick: bool) -> int:
        """How many rows it is.

        Raises:
            InputError: Both are given, or too few rows.
        """
        if rows is None:
            return self.quick if quick else self.rows
        if quick or rows < self.least:
            raise InputError(
                f"--rows is {rows}{' beside --quick' if quick else ''}",
                expected=f"{self.least} {self.unit} or more, or --quick for {self.quick}",
                fix=f"--rows {self.quick}, or --quick alone",
            )
        return rows

    def chosen(self, names: Collection[str]) -> tuple[str, ...]:
        """The parts that are asked for; all if none is.

        Raises:
            InputError: There is no such part.
        """
        for name in names:
            if name not in self.parts:
                raise InputError(
                    f"--only is {name!r}",
                    expected=listed(self.parts),
                    fix=suggest(name, self.parts),
                )
        return tuple(part for part in self.parts if not names or part in names)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} seconds"
    return f"{round(seconds / 60)} minutes"


SCALES: Mapping[str, Scale] = {
    "budget": Scale(unit="rounds", rows=3, quick=1, once_s=30, row_s=130),
    "cancel": Scale(unit="cancelled runs", rows=50, quick=5, once_s=20, row_s=4.5),
    "chain": Scale(unit="rounds", rows=3, quick=1, once_s=20, row_s=95),
    "decode": Scale(unit="prompts", rows=20, quick=3, once_s=20, row_s=19),
    "fan_in": Scale(unit="documents", rows=4, quick=2, least=2, once_s=30, row_s=230),
    "fanout": Scale(unit="rounds", rows=3, quick=1, once_s=60, row_s=380),
    "hop": Scale(
        unit="rounds", rows=9, quick=2, once_s=20, row_s=51, parts=("256", "512", "1024", "2048")
    ),
    "hops": Scale(
        unit="chains",
        rows=30,
        quick=4,
        least=2,
        parts=("given", "generated", "bfloat16", "long", "at once", "bridge"),
    ),
    "overhead": Scale(
        unit="rounds",
        rows=5,
        quick=1,
        once_s=10,
        row_s=12,
        parts=("chain", "fan-out", "checkpointed chain"),
    ),
    "packet": Scale(unit="passages", rows=20, quick=2, least=2, parts=("quality", "speed")),
    "peers": Scale(
        unit="rounds",
        rows=3,
        quick=1,
        parts=(
            *("reader_solver", "chain_of_four", "fan_out_of_eight", "fan_in_of_four"),
            *("unspoken", "langgraph", "langgraph_cached", "generate", "avp", "vllm", "llama_cpp"),
        ),
    ),
    "predictions": Scale(
        unit="rounds",
        rows=3,
        quick=1,
        once_s=100,
        row_s=48,
        parts=(
            *("continued", "text", "spliced", "chain", "fan_out"),
            *("loop", "router", "fan_in", "items", "two_models"),
        ),
    ),
    "profile": Scale(unit="questions", rows=16, quick=4, least=2, parts=("full", "lora")),
    "resume": Scale(unit="kills", rows=50, quick=5),
    "schema": Scale(unit="answers", rows=100, quick=9, least=3),
    "session": Scale(unit="rounds", rows=5, quick=1, once_s=20, row_s=14),
    "soak": Scale(unit="runs", rows=2000, quick=500, least=400, once_s=10, row_s=0.235),
    "splice": Scale(
        unit="passages", rows=20, quick=2, least=2, once_s=10, row_s=22, parts=("prompt", "output")
    ),
    "stall": Scale(unit="rounds", rows=5, quick=1, once_s=20, row_s=20),
}
"""By name. One that is not in it has one size, and no ``--rows``."""


def sized(
    name: str, *, count: int | None = None, quick: bool = False, only: Collection[str] = ()
) -> dict[str, Any]:
    """What the ``measure`` of a benchmark is told of how much it measures.

    Args:
        name: The benchmark.
        count: How many rows, of the scale's unit; None for as many as the published figures have.
        quick: Whether a few will do.
        only: The parts that are measured; empty for all.

    Raises:
        InputError: It has no such number or part.
    """
    scale = SCALES.get(name)
    if scale is None or (only and not scale.parts):
        given = {"--rows": count is not None, "--quick": quick} if scale is None else {}
        given["--only"] = bool(only)
        if unread := " and no ".join(flag for flag, is_given in given.items() if is_given):
            takers = [other for other, its in SCALES.items() if its.parts or not only]
            raise InputError(
                f"the benchmark {name} takes no {unread}",
                expected=f"none, or one of {listed(takers)}",
                fix=f"leave {unread.replace(' no ', ' ')} out",
            )
        return {}
    size: dict[str, Any] = {"count": scale.asked(count, quick=quick)}
    return {**size, "only": scale.chosen(only)} if scale.parts else size


def reduced(name: str, size: Mapping[str, Any]) -> str:
    """What is less than in the published figures, in words; empty where nothing is."""
    scale = SCALES.get(name)
    if scale is None:
        return ""
    parts = size.get("only", scale.parts)
    said = [] if parts == scale.parts else [f"{' and '.join(parts)} alone"]
    if size["count"] != scale.rows:
        said.append(f"{size['count']:,} of {scale.rows:,} {scale.unit}")
    return ", ".join(said)


def forecast(name: str, size: Mapping[str, Any]) -> str:
    """How much will be measured and for how long, in words; empty where nobody knows.

    Args:
        name: The benchmark.
        size: As `sized` says it.
    """
    scale = SCALES.get(name)
    if scale is None:
        return ""
    parts = size.get("only", scale.parts)
    said = scale.said(size["count"])
    if parts != scale.parts:
        said = f"{' and '.join(parts)} alone; all parts: {said}"
    return said if size["count"] <= scale.quick else f"{said}; --quick: {scale.said(scale.quick)}"
