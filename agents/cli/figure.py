"""Audits and profiles drawn into files, by matplotlib where it is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.agents.cli.audit_view import retention_rows
from unspoken.channels.errors import BridgeError, InputError

if TYPE_CHECKING:
    from unspoken.channels.bridges.manifest import BridgeManifest
    from unspoken.channels.finetunes.profile import Profile


KINDS = (".png", ".svg")


def draw(manifest: "BridgeManifest", file: Path) -> None:
    """Draw what conditions keep of the text's gain, a panel per data set, with 95 % intervals.

    Args:
        manifest: The bridge's.
        file: Where to; ``.png`` or ``.svg``.

    Raises:
        InputError: Another kind of file, one that cannot be written, or no matplotlib.
        BridgeError: The bridge was never audited.
    """
    _require_kind(file)
    by_data = retention_rows(manifest.audit.rows) if manifest.audit else {}
    if not by_data:
        raise BridgeError(
            "the bridge has no audit to draw",
            expected="a bridge with an audit",
            fix=f"unspoken bridge audit {manifest.sharer.ref} {manifest.receiver.ref} --save",
        )
    figure = _figure()(figsize=(4.2 * len(by_data) + 1.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(by_data), sharey=True, squeeze=False)[0]
    for panel, (data, rows) in zip(panels, by_data.items(), strict=True):
        _panel(panel, data, rows)
    figure.suptitle(f"{manifest.sharer.ref} → {manifest.receiver.ref}", fontsize=10)
    _save(figure, file)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require_drawable(file: Path) -> None:
    """Refuse, before anything is measured, a figure that could not be drawn.

    Raises:
        InputError: Another kind of file, a folder that is not there, or no matplotlib.
    """
    _require_kind(file)
    if not file.absolute().parent.is_dir():
        problem = f"there is no folder {file.absolute().parent}"
        raise InputError(problem, expected="a folder for the figure")
    _figure()


def draw_profile(profile: "Profile", file: Path) -> None:
    """Draw KL over the share of layers recomputed, a line per place, with 95 % intervals.

    Args:
        profile: The profile.
        file: Where to; ``.png`` or ``.svg``.

    Raises:
        InputError: One that cannot be written, or no matplotlib.
    """
    figure = _figure()(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    for place in profile.points[0].places:
        divergences = [point.places[place] for point in profile.points]
        values = [max(divergence.kl, 1e-7) for divergence in divergences]
        pairs = list(zip(values, divergences, strict=True))
        low = [max(value - max(divergence.low, 1e-8), 0) for value, divergence in pairs]
        high = [max(divergence.high - value, 0) for value, divergence in pairs]
        shares = [point.share for point in profile.points]
        panel.errorbar(shares, values, yerr=[low, high], marker="o", capsize=2, label=place)
    panel.set_yscale("log")
    panel.set_xlabel("share of layers recomputed")
    panel.set_ylabel("KL to the receiver's own prefill, nats a token")
    panel.legend(title="message stands", fontsize=8)
    panel.set_title(f"{profile.sharer.ref} → {profile.receiver.ref}", fontsize=9)
    _save(figure, file)


def _require_kind(file: Path) -> None:
    if file.suffix.lower() not in KINDS:
        raise InputError(
            f"{file} has the ending {file.suffix!r}",
            expected=" or ".join(KINDS),
            fix=f"name it {file.with_suffix('.png')}",
        )


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "matplotlib, which draws figures, is not installed",
            expected="unspoken with its extra `figures`",
            fix='pip install "unspoken[figures]"',
        ) from error
    return Figure


def _save(figure: Any, file: Path) -> None:
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error


def _panel(panel: Any, data: str, rows: Any) -> None:
    conditions = [str(row["way"]) for row in rows]
    values = [float(row["retention"]) for row in rows]
    bounds = ([row.get(name) for row in rows] for name in ("retention_low", "retention_high"))
    errors = [
        [
            0.0 if bound is None else abs(value - bound)
            for value, bound in zip(values, side, strict=True)
        ]
        for side in bounds
    ]
    colours = ["#1f6f8b" if name == "bridge" else "#b8c4cc" for name in conditions]
    panel.barh(conditions, values, xerr=errors, color=colours, ecolor="#444444", capsize=2)
    panel.axvline(1, color="#444444", linewidth=0.8)
    panel.axvline(0, color="#444444", linewidth=0.8)
    panel.set_xlim(min(-0.1, *values, -0.1), max(1.1, *values))
    if not panel.yaxis_inverted():
        panel.invert_yaxis()
    panel.set_title(data, fontsize=10)
    panel.set_xlabel("kept of the text's gain")
