"""An audit drawn into a file, by matplotlib where it is installed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.agents.cli.auditing import kept_by_way
from unspoken.channels.errors import BridgeError, InputError

if TYPE_CHECKING:
    from unspoken.channels.bridges.manifest import BridgeManifest

__all__ = ["draw"]

KINDS = (".png", ".svg")


def draw(manifest: "BridgeManifest", file: Path) -> None:
    """Draw what every way keeps of the text's gain, a panel per data set, with 95 % intervals.

    Args:
        manifest: The bridge's.
        file: Where to; ``.png`` or ``.svg``.

    Raises:
        InputError: Another kind of file, one that cannot be written, or no matplotlib.
        BridgeError: The bridge was never audited.
    """
    if file.suffix.lower() not in KINDS:
        raise InputError(
            f"{file} has the ending {file.suffix!r}",
            expected=" or ".join(KINDS),
            fix=f"name it {file.with_suffix('.png')}",
        )
    kept = kept_by_way(manifest.audit.rows) if manifest.audit else {}
    if not kept:
        raise BridgeError(
            "the bridge has no audit to draw",
            expected="a bridge with an audit",
            fix=f"unspoken bridge audit {manifest.sharer.ref} {manifest.receiver.ref} --save",
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "matplotlib, which draws figures, is not installed",
            expected="unspoken with its extra `figures`",
            fix='pip install "unspoken[figures]"',
        ) from error
    figure = Figure(figsize=(4.2 * len(kept) + 1.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
    for panel, (data, rows) in zip(panels, kept.items(), strict=True):
        _panel(panel, data, rows)
    figure.suptitle(f"{manifest.sharer.ref} → {manifest.receiver.ref}", fontsize=10)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error


def _panel(panel: Any, data: str, rows: Any) -> None:
    ways = [str(row["way"]) for row in rows]
    values = [float(row["retention"]) for row in rows]
    errors: list[list[float]] = [[], []]
    for row, value in zip(rows, values, strict=True):
        for side, name in enumerate(("retention_low", "retention_high")):
            bound = row.get(name)
            errors[side].append(abs(value - bound) if bound is not None else 0.0)
    colours = ["#1f6f8b" if way == "bridge" else "#b8c4cc" for way in ways]
    panel.barh(ways, values, xerr=errors, color=colours, ecolor="#444444", capsize=2)
    panel.axvline(1, color="#444444", linewidth=0.8)
    panel.axvline(0, color="#444444", linewidth=0.8)
    panel.set_xlim(min(-0.1, *values, -0.1), max(1.1, *values))
    panel.invert_yaxis() if not panel.yaxis_inverted() else None
    panel.set_title(data, fontsize=10)
    panel.set_xlabel("kept of the text's gain")
