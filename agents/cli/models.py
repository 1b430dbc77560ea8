"""``unspoken models``: which models there are, what they are, and preparing them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.agents.cli.console import (
    count,
    print_facts,
    print_json,
    print_table,
    shown,
    size,
    stderr,
    stdout,
)
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import ModelReferenceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unspoken.agents.models.catalog import ModelListing
    from unspoken.channels.kv.geometry import CacheGeometry


Ref = Annotated[
    str, typer.Argument(metavar="REF", help="A Hub id, a folder, a .gguf file or embedded:NAME.")
]


def list_(as_json: JsonOption = False) -> None:
    """List the models on this machine: embedded, prepared or downloaded."""
    from unspoken.agents.models.catalog import list_models

    listings = list_models()
    if as_json:
        print_json([asdict(line) for line in listings])
        return
    console = stdout()
    rows = []
    for line in listings:
        on_disk = size(line.bytes) if line.bytes else "–"
        rows.append([line.ref, _readiness(line), on_disk, line.description])
    print_table(console, "Models", ["reference", "state", "on disk", "what"], rows, (0, 1, 3))
    for line in listings:
        if line.install and not line.installed and not line.prepared:
            console.print(shown(f"  {line.ref}: {line.install}"), soft_wrap=True)


def _readiness(line: "ModelListing") -> str:
    if line.prepared:
        return "ready"
    return "to be prepared" if line.installed else "not installed"


def show(ref: Ref, as_json: JsonOption = False) -> None:
    """Show the shape of a model's cache, what it can do, its template. Loads no weights."""
    from unspoken.agents.models.catalog import parse

    kind = parse(ref).kind
    folder, listing = _found(ref)
    facts: dict[str, Any] = {"ref": ref, "kind": kind}
    if listing is not None and listing.description:
        facts |= {"description": listing.description}
    facts |= {"folder": folder, "bytes": _bytes(folder) if folder else 0}
    if folder is not None:
        with reporting(stderr(), "reading", quiet=True):
            facts |= _measured(ref, folder)
    if as_json:
        print_json(facts)
        return
    print_facts(stdout(), _in_words(facts))
    if folder is None:
        install = f"{listing.install}, then " if listing and not listing.installed else ""
        stdout().print(
            shown(f"\nNot prepared yet: {install}unspoken models prepare {ref}"), soft_wrap=True
        )


def _found(ref: str) -> "tuple[Path | None, ModelListing | None]":
    """Where a model's safetensors are, if they are, and its line in the list."""
    from unspoken.agents.models.catalog import list_models, parse
    from unspoken.agents.models.catalog import prepare as prepare_model

    reference = parse(ref)
    if reference.kind == "folder":
        return prepare_model(ref), None
    names = {ref, reference.name}
    if reference.path is not None:
        names = {str(reference.path.resolve())}
    lines = [line for line in list_models() if line.kind == reference.kind and line.ref in names]
    listing = min(lines, key=lambda line: not line.prepared, default=None)
    return (listing.path if listing and listing.prepared else None), listing


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _measured(ref: str, folder: Path) -> dict[str, Any]:
    """What a model's configuration and tokenizer say."""
    from torch import nn

    from unspoken.agents.models.linears.packed import expected_linears
    from unspoken.agents.models.notes import cached_identity, cached_refusals
    from unspoken.agents.models.proofs.noted import noted_abilities
    from unspoken.agents.prompts.parity import context_builder_of
    from unspoken.agents.prompts.tokenizer import TextTokenizer

    (model, tokenizer), identity = _hollow(ref, folder), cached_identity(folder)
    shape = _shape(_geometry(model, folder))
    linears = expected_linears(nn.Module.float(model))  # as a CPU computes it
    template = context_builder_of(TextTokenizer(tokenizer, "")).template
    return {
        **shape,
        "template": {"plain": template.plain, "notes": list(template.notes)},
        "linears": {"kind": linears.kind, "reason": linears.reason},
        "generation": _asked(folder),
        "batches": cached_refusals(folder, "batches"),
        "abilities": {how: dict(row) for how, row in noted_abilities(folder).items()},
        "identity": asdict(identity) if identity else None,
    }


def _shape(geometry: "CacheGeometry | None") -> dict[str, Any]:
    """What a model's cache is like; nulls where only the loaded model can tell."""
    if geometry is None:
        names = ("layers", "kv_heads", "head_dim", "windows", "kinds", "bytes_per_token")
        return dict.fromkeys((*names, "max_positions"))
    layers = geometry.layers
    return {
        "layers": len(layers),
        "kv_heads": sorted({layer.kv_heads for layer in layers if layer.kv_heads}),
        "head_dim": sorted({layer.head_dim for layer in layers if layer.kv_heads}),
        "windows": [layer.window for layer in layers],
        "kinds": [layer.kind for layer in layers],
        "bytes_per_token": {
            "float32": geometry.bytes_per_token(4),
            "bfloat16": geometry.bytes_per_token(2),
        },
        "max_positions": geometry.max_positions,
    }


def _geometry(model: "PreTrainedModel", folder: Path) -> "CacheGeometry | None":
    """The cache geometry of a model without weights; None where it has to be loaded first."""
    from unspoken.agents.models.caches.calls import DecoderCalls
    from unspoken.agents.models.decoders.parts import text_decoder
    from unspoken.agents.models.hf_geometry import read_geometry
    from unspoken.agents.models.notes import cached_geometry
    from unspoken.channels.errors import ModelSupportError

    if (known := cached_geometry(folder)) is not None:
        return known
    base, _ = text_decoder(model)
    try:
        return read_geometry(DecoderCalls(model, base), base, model.config.get_text_config())
    except ModelSupportError as error:
        # A model whose way through its layers depends on values cannot be read without weights.
        if error.__cause__ is None:
            raise
        return None


def _asked(folder: Path) -> dict[str, Any]:
    """What a checkpoint asks of sampling; nothing where it says nothing."""
    from transformers import GenerationConfig

    from unspoken.agents.models.generation import asked_of_sampling

    try:
        return dict(asked_of_sampling(GenerationConfig.from_pretrained(folder)))
    except (OSError, ValueError):
        return {}


def _hollow(ref: str, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model of a folder without its weights, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from unspoken.agents.models.checkpoints.text_part import causal_config
    from unspoken.agents.models.checkpoints.tokenizer import read_tokenizer
    from unspoken.agents.models.pretrained import strangers_code

    quiet_libraries()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = read_tokenizer(folder)
        with torch.device("meta"):
            # Named, since a config may name a kernel that transformers would download and run.
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                causal_config(config), trust_remote_code=False, attn_implementation="eager"
            )
    except (OSError, ValueError, KeyError) as error:
        if (refusal := strangers_code(ref, error)) is not None:
            raise refusal from error
        raise ModelReferenceError(
            f"{ref!r} cannot be read from {folder}: {str(error).partition(chr(10))[0]}",
            expected="a causal language model with config.json and a tokenizer",
            fix="check the folder, or use another model",
        ) from error
    return model.eval(), tokenizer


def _in_words(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts in words."""
    yield "model", facts["ref"]
    if "description" in facts:
        yield "what", facts["description"]
    yield "comes as", facts["kind"]
    if facts["folder"] is None:
        return
    yield "folder", str(facts["folder"])
    yield "on disk", size(facts["bytes"])
    yield from _cache(facts)
    template = facts["template"]
    words = "none of its own: turns are plain paragraphs" if template["plain"] else "its own"
    yield "chat template", "; ".join([words, *template["notes"]])
    yield "linear layers", f"{facts['linears']['kind']} on a CPU: {facts['linears']['reason']}"
    yield "asks for", _generation(facts["generation"])
    yield from _abilities(facts["abilities"])
    if facts["identity"] is None:
        yield "identity", "computed when the model is first loaded"
        return
    for part, digest in facts["identity"].items():
        yield f"identity, {part}", digest


def _cache(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a model's layers keep of a context."""
    if facts["layers"] is None:
        yield "cache", "known once the model is first loaded"
        return
    yield "layers", _layers(facts["windows"])
    if set(facts["kinds"]) != {"rows"}:
        kinds = Counter(facts["kinds"]).items()
        yield "kinds of layers", ", ".join(f"{number} {kind}" for kind, number in kinds)
    if facts["kv_heads"]:
        heads, values = _listed(facts["kv_heads"]), _listed(facts["head_dim"])
        yield "KV heads", f"{heads} of {values} values each"
    sizes = (f"{size(number)} in {dtype}" for dtype, number in facts["bytes_per_token"].items())
    yield "cache per token", ", ".join(sizes)
    yield "context", f"{count(facts['max_positions'])} tokens"


def _generation(asked: dict[str, Any]) -> str:
    """What a checkpoint asks of sampling, and when it gets it."""
    from unspoken.agents.models.generation import APPLIED

    if not asked:
        return "no settings of generation"
    applied = [f"{name} {asked[name]}" for name in APPLIED if name in asked]
    others = [f"{name} {value}" for name, value in asked.items() if name not in APPLIED]
    used = f"{', '.join(applied)}, with generate: {{defaults: checkpoint}}" if applied else ""
    ignored = f"{', '.join(others)}, not applied" if others else ""
    return "; ".join(filter(None, (used, ignored)))


def _abilities(ways: dict[str, dict[str, str | None]]) -> Iterator[tuple[str, str]]:
    """What the model can do with states: yes, or why not, by the way in which it was loaded."""
    from unspoken.agents.models.proofs.abilities import Abilities

    if not ways:
        names = ", ".join(name for name, _ in Abilities())
        yield "can", f"tried when the model is first loaded: {names}"
        return
    for name in next(iter(ways.values())):
        answers = {
            how: "yes" if row[name] is None else f"no: {row[name]}" for how, row in ways.items()
        }
        if len(set(answers.values())) == 1:
            yield name, next(iter(answers.values()))
        else:
            yield name, "; ".join(f"{answer} in {how}" for how, answer in answers.items())


def _layers(windows: list[int | None]) -> str:
    sliding = [window for window in windows if window is not None]
    if not sliding:
        return f"{len(windows)}, all of them see every position"
    seen = _listed(sorted(set(sliding)))
    return f"{len(windows)}, {len(sliding)} of them see the last {seen} positions only"


def _listed(numbers: list[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)


def prepare(
    ref: Ref,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a Hub model.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the digests of what was prepared before.")
    ] = False,
) -> None:
    """Download or convert a model before a run needs it, and print its folder."""
    from unspoken.agents.loading import step_of
    from unspoken.agents.models.catalog import prepare as prepare_model

    with reporting(stderr(), f"preparing {ref}") as report:
        step = step_of(report, ref)
        folder = prepare_model(ref, revision=revision, verify=verify, progress=step)
    echo(folder)
