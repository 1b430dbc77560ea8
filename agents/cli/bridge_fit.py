"""``unspoken bridge fit`` and ``unspoken bridge audit``: making bridges, and measuring them."""

import sys
from functools import partial
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from unspoken.agents.cli.audit_view import print_audit
from unspoken.agents.cli.bridge import First, Second, find_folder
from unspoken.agents.cli.console import print_stored, shown, stderr, stdout
from unspoken.agents.cli.options import (
    Choice,
    Device,
    Dtype,
    Length,
    Longest,
    Minutes,
    Qa,
    Recall,
    Receiver,
    Sharer,
    Sketch,
    Text,
    TrainDtype,
    float_type,
    given,
)
from unspoken.agents.cli.progress import load_pair, quiet_libraries, reporting
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.bridges.fit.progress import FitProgress
    from unspoken.channels.model import Hold


def fit(
    sharer: Sharer,
    receiver: Receiver,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC",
            help="A text to fit on: a file, a folder, hub:NAME or builtin. May be repeated.",
        ),
    ] = None,
    minutes: Minutes = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Most training steps.")] = None,
    native_layers: Annotated[
        int, typer.Option(min=0, help="How many layers the receiver runs itself over a message.")
    ] = 0,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Width of the code; the widest that its size allows if left out."),
    ] = None,
    source_layers: Annotated[
        int | None, typer.Option(min=1, help="How many of the sharer's layers are read.")
    ] = None,
    hidden: Annotated[
        int | None,
        typer.Option(min=0, help="Width of the residual's hidden layer; 0 for no residual."),
    ] = None,
    bottleneck: Annotated[
        int | None, typer.Option(min=1, help="Width of the residual's bottleneck.")
    ] = None,
    sketch: Sketch = None,
    longest: Longest = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    train_dtype: TrainDtype = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit even where a bridge is stored.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the bridge; your store if left out."),
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse", help="Train fuse mode too: 20 minutes more, or as many as --minutes."
        ),
    ] = False,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Do not measure the bridge.")
    ] = False,
    no_embeddings: Annotated[
        bool,
        typer.Option(
            "--no-embeddings-bridge",
            help="Do not fit the bridge of embeddings alone, which takes as long again. Without "
            "it no audit shows what the sharer adds.",
        ),
    ] = False,
    text: Text = None,
    qa: Qa = None,
    recall: Recall = None,
    length: Length = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a bridge, measure it, store it, and print its folder.

    A second bridge of the same size is fitted after it, to judge it by: it gets the receiver's
    embeddings alone. Both take the same time. After an interruption the same command goes on from
    where it was.
    """
    _require_files(text, qa, recall)
    train_type = float_type(train_dtype, "--train-dtype")
    console = stderr()
    models = load_pair(sharer, receiver, console, quiet=as_json, dtype=dtype, device=device)
    from unspoken.channels.bridges.audit.plan import AuditPlan
    from unspoken.channels.bridges.fit.settings import FitSettings, FuseSettings
    from unspoken.channels.bridges.folder import check
    from unspoken.channels.bridges.make import fit_bridge
    from unspoken.channels.bridges.plan import FitPlan

    _require_targets(native_layers, models[1])
    budget = given(minutes=minutes, steps=steps)
    shape = given(
        rank=rank, source_layers=source_layers, native_layers=native_layers, hidden=hidden,
        bottleneck=bottleneck, sketch=sketch,
        longest=longest, seed=seed,
    )  # fmt: skip
    measured = _measured_at(length)
    plan = FitPlan(
        sources=tuple(corpus or ("builtin",)),
        settings=FitSettings(**budget, **shape),
        audit=None if no_audit else AuditPlan(text=text, qa=qa, recall=recall, **measured),
        refit=refit,
        out=out,
        train_dtype=train_type,
        command=join(["unspoken", *sys.argv[1:]]),
        fuse=FuseSettings(**budget) if fuse else None,
        embeddings=not no_embeddings,
    )
    title = f"{sharer} -> {receiver}"

    try:
        with reporting(console, f"fitting {title}", quiet=as_json) as report:
            folder = fit_bridge(
                *models,
                plan,
                hold=_hold(models),
                report=lambda stage, part: report(title, stage, part),
                watch=partial(_tell_scores, console, as_json),
            )
    except KeyboardInterrupt:
        _say_what_is_kept(console, models)
        raise
    manifest = check(folder)
    if as_json:
        print_stored(folder, manifest)
        return
    if manifest.audit is not None:
        print_audit(console, manifest.audit)
    echo(folder)


def _tell_scores(console: Console, quiet: bool, progress: "FitProgress") -> None:
    """Says how a fit does, each time that it was scored."""
    if progress.scores is not None and not quiet:
        console.print(shown(progress_line(progress)), soft_wrap=True)


def _hold(models: "tuple[LocalModel, LocalModel]") -> "Hold":
    """Keeps both models' devices for the fit or the audit alone."""
    from unspoken.agents.models.weights import holding

    return partial(holding, list(models))


def _require_files(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.is_file():
            raise InputError(f"there is no file {file}", expected="a file", fix="check the path")


def _measured_at(lengths: list[int] | None) -> dict[str, Any]:
    """The argument of an audit's plan that says how long messages are, where they were given."""
    from unspoken.channels.bridges.audit.plan import AuditSettings

    return {"settings": AuditSettings(task=tuple(sorted(set(lengths))))} if lengths else {}


def _require_targets(native_layers: int, receiver: "LocalModel") -> None:
    layers = len(receiver.geometry.layers)
    if native_layers >= layers:
        raise InputError(
            f"--native-layers is {native_layers}, and {receiver.ref} has {layers} layers",
            expected=f"0 to {layers - 1}, so that something is left to project",
        )


def progress_line(progress: "FitProgress") -> str:
    """Where training stands: its loss, and what the bridge keeps on validation rows."""
    parts = [f"{progress.fraction:.0%} trained"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.scores is not None:
        parts.append(progress.scores.describe())
    return ", ".join(parts)


def _say_what_is_kept(console: Console, models: "tuple[LocalModel, LocalModel]") -> None:
    from unspoken.channels.bridges.make import work_folder
    from unspoken.channels.bridges.store import BridgeStore

    sharer, receiver = models
    work = work_folder(BridgeStore(), sharer.identity, receiver.identity)
    resumable = work.is_dir() and any(work.iterdir())
    said = (
        f"what was fitted is kept in {work}; the same command goes on from it"
        if resumable
        else "nothing was kept yet: the closed form was not done"
    )
    console.print(shown(said), soft_wrap=True)


def audit(
    first: First,
    second: Second = None,
    bridge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bridge; your store's if left out.")
    ] = None,
    text: Text = None,
    qa: Qa = None,
    recall: Recall = None,
    choice: Choice = None,
    length: Length = None,
    contexts: Annotated[
        int | None,
        typer.Option(min=2, help="Most contexts of the task; under 100 it shows nothing."),
    ] = None,
    with_embeddings: Annotated[
        bool,
        typer.Option(
            "--with-embeddings-bridge",
            help="Fit the bridge of embeddings alone first, where it is missing: as long as the "
            "bridge's own fit. It is stored beside the bridge.",
        ),
    ] = False,
    save: Annotated[
        bool,
        typer.Option(
            "--save",
            help="Store the audit with the bridge, in place of its present one. A bridge of your "
            "store that has no audit of this machine gets it anyway.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what a bridge carries of a message, against text, no message and other controls.

    A bridge with fuse mode is also measured on questions with options: the receiver alone, fused,
    and fused with another question's state.
    """
    _require_files(text, qa, recall, choice)
    from unspoken.channels.bridges.folder import check
    from unspoken.channels.bridges.store import BridgeStore

    folder = bridge or find_folder([first, second] if second else [first])
    manifest = check(folder)
    refs = (first, second) if second else (manifest.sharer.ref, manifest.receiver.ref)
    console = stderr()
    models = load_pair(*refs, console, quiet=as_json)
    from unspoken.channels.bridges.audit.plan import AuditPlan
    from unspoken.channels.bridges.audit.stored import audit_bridge, keep_audit
    from unspoken.channels.bridges.trust import measured_here

    quiet_libraries()
    title = f"{refs[0]} -> {refs[1]}"
    if with_embeddings and manifest.embeddings is None:
        _fit_embeddings(folder, models, console, as_json)
        manifest = check(folder)
    more = given(contexts=contexts) | _measured_at(length)
    with reporting(console, f"measuring {title}", quiet=as_json) as report:
        measured = audit_bridge(
            folder,
            *models,
            AuditPlan(text=text, qa=qa, recall=recall, choice=choice, **more),
            hold=_hold(models),
            report=lambda stage, part: report(title, stage, part),
        )
    ours = BridgeStore().root.resolve() in folder.resolve().parents
    if save or (ours and (manifest.audit is None or not measured_here(manifest))):
        keep_audit(folder, measured, manifest)
        console.print(shown(f"kept with the bridge in {folder}"), soft_wrap=True)
    if as_json:
        print_stored(folder, measured)
    else:
        print_audit(stdout(), measured)


def _fit_embeddings(
    folder: Path, models: "tuple[LocalModel, LocalModel]", console: Console, quiet: bool
) -> None:
    """Fits the bridge of embeddings alone of a stored bridge; says how long that may take."""
    from unspoken.channels.bridges.audit.stored import corpus_of
    from unspoken.channels.bridges.embeddings import add_alone
    from unspoken.channels.bridges.folder import check
    from unspoken.channels.bridges.make import work_folder
    from unspoken.channels.bridges.store import BridgeStore

    manifest = check(folder)
    minutes = manifest.fit.get("fit_minutes_total")
    if not quiet:
        said = f"a second fit of {manifest.fit.get('steps')} steps; the bridge's took {minutes} min"
        console.print(shown(said), soft_wrap=True)
    sharer, receiver = models
    title = f"embeddings alone -> {receiver.ref}"
    store = BridgeStore()
    ends = sharer.identity, receiver.identity
    with (
        reporting(console, f"fitting {title}", quiet=quiet) as report,
        store.lock(*ends),
        _hold(models)(),
    ):
        add_alone(
            folder,
            sharer,
            receiver,
            corpus_of(manifest),
            report=lambda progress: report(title, progress.stage, progress.fraction),
            work=work_folder(store, *ends),
        )
