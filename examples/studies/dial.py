"""The dial of a bridge: how many layers the receiver runs itself, and what that gains and costs."""

from pathlib import Path
from typing import Any

from assessed_forms import assessed_rows, rows_of
from closed_forms import ClosedForms, choose
from study import TEXT, Measured, Progress, run
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.timing import scene, timings
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.manifest import BridgeManifest, FitData, ModelDescription
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import load_corpus

LAYERS, RANK, TOKENS = 6, 512, 24_000
PASSAGES, SIZE, REPEATS = 24, 1024, 5


def measure(
    sharer: LocalModel, receiver: LocalModel, *, text: Path | None = None, progress: Progress
) -> Measured:
    """A row per number of native layers: what a closed form keeps, and its speed."""
    corpus = load_corpus()
    natives = settings(len(receiver.geometry.layers))
    count = min(LAYERS, len(sharer.geometry.layers))
    layers = choose(sharer, receiver, corpus, [count])[count]
    forms = ClosedForms(sharer, receiver, layers, natives=[n for n in natives if n])
    progress(f"one closed form of {forms.columns} features, source layers {layers}")
    forms.fit(corpus, TOKENS)
    brought = AuditPlan(text=text, passages=PASSAGES, questions=0, records=0).rows(corpus)
    trials = rows_of("continuation", brought, forms)
    place = scene(brought.text, SIZE, sharer, receiver)
    variants = {}
    for native in natives:
        progress(f"solve: {native} native layers")
        for name, read in (("bridge", layers), ("alone", ())):
            config = ProjectorConfig(source_layers=read, native_layers=native, rank=RANK, hidden=0)
            variants[f"{name} {native}"] = config, forms.projector(config)
    forms.release()
    progress("assess")
    assessed = assessed_rows(
        trials, {name: forms.conditions(*form) for name, form in variants.items()}
    )
    rows: list[dict[str, Any]] = []
    for native in natives:
        row: dict[str, Any] = {
            "native_layers": native,
            **assessed[f"bridge {native}"],
            "without_sharer": assessed[f"alone {native}"]["retention"],
        }
        if place is not None:
            progress(f"time: {native} native layers")
            bridge = _bridge(variants[f"bridge {native}"][1], sharer, receiver)
            seconds = timings(bridge, place, receiver, REPEATS)
            row["ttft_s"] = round(seconds["bridge"], 5)
            row["speedup_over_text"] = round(seconds["text"] / seconds["bridge"], 2)
        rows.append(row)
    first = rows[0]
    return rows, {
        "retention_native_0": first["retention"],
        "specific_native_0": first["specific"],
        "without_sharer_native_0": first["without_sharer"],
        f"ttft_speedup_{SIZE}_native_0": first.get("speedup_over_text"),
    }


def settings(layers: int) -> list[int]:
    """Numbers of native layers to try: none, powers of two, and half of them."""
    powers = [2**power for power in range(1, 8) if 2**power < layers]
    return sorted({0, *powers, layers // 2})


def _bridge(projector: Projector, sharer: LocalModel, receiver: LocalModel) -> Bridge:
    """A bridge of a closed form, stored nowhere."""
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, sharer.ref),
        ModelDescription.of(receiver, receiver.ref),
        config=projector.config.to_dict(),
        dtype="float32",
        data=FitData(sources=(), digest="", tokens=0, seed=0),
        fit={},
    )
    return Bridge(manifest, projector)


def main() -> None:
    """Run the study from the command line."""
    run(measure, __doc__, files={"text": TEXT})


if __name__ == "__main__":
    main()
