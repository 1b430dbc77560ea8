"""Fine-tunes by a fixed recipe, for measurements between a base and its fine-tunes.

They learn to answer questions about documents of invented facts and to continue plain English, in
the chat turns that a workflow composes. They need not be good at anything: they must differ from
their base and be the same each time.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from blake3 import blake3
from filelock import FileLock
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from unspoken.agents.models.catalog import prepare
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.data.passages import fact_passages
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import InputError, ModelSupportError
from unspoken.channels.storage.atomic_folder import staged
from unspoken.channels.storage.files import cache_root

Kind = Literal["full", "lora"]
KINDS: tuple[Kind, ...] = ("full", "lora")

DONE = "recipe.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a fine-tune is made.

    Attributes:
        kind: All weights, or a LoRA on every linear layer of the decoder.
        steps: Steps of AdamW.
        batch: Sequences a step.
        learning_rate: Its maximum, after a tenth of the steps; a cosine brings it down to 0.
        rank: Rank of the LoRA.
        seed: Of the data and of the LoRA's first weights.
        tokens: Most tokens of a sequence.
    """

    kind: Kind
    steps: int = 60
    batch: int = 2
    learning_rate: float = 2e-4
    rank: int = 16
    seed: int = 0
    tokens: int = 256

    @classmethod
    def of(cls, kind: Kind) -> "Recipe":
        """The recipe of a kind.

        Raises:
            InputError: No such kind.
        """
        if kind not in KINDS:
            raise InputError(f"there is no fine-tune of the kind {kind!r}", expected="full or lora")
        return cls(kind=kind, learning_rate=2e-4 if kind == "full" else 2e-3)


def finetune_folder(base: LocalModel, recipe: Recipe) -> Path:
    """Where the fine-tune of a base by a recipe is kept."""
    settings = json.dumps(asdict(recipe), sort_keys=True)
    digest = blake3(f"{base.identity.weights}\n{settings}".encode()).hexdigest()[:12]
    return cache_root() / "finetunes" / f"{recipe.kind}-{digest}"


def finetune(
    base: LocalModel,
    recipe: Recipe,
    report: Callable[[str, float], None] = lambda stage, part: None,
    *,
    folder: Path | None = None,
) -> LocalModel:
    """A fine-tune of a model, made the first time and loaded afterwards.

    Args:
        base: The base, loaded by reference; a LoRA shares its weights.
        recipe: How it is made.
        report: Told of the stage and a fraction.
        folder: Where it is kept; in the user's cache, by base and recipe, if not given.

    Raises:
        InputError: A base that was not loaded by reference, or a folder with a fine-tune by another
            recipe.
        ModelSupportError: A LoRA without peft.
        BridgeError: The folder cannot be written.
    """
    if not base.ref or base.adapter is not None:
        raise InputError(
            "a fine-tune starts from a model's files",
            expected="a base that was loaded by reference, without an adapter",
        )
    folder = folder or finetune_folder(base, recipe)
    settings = {"base": base.identity.weights, **asdict(recipe)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.train.lock"):  # two that need one train it once
        if not _is_there(folder, settings):
            _require_empty(folder)
            trained = _trained(base, recipe, report)
            with staged(folder, _require_empty) as stage:
                if recipe.kind == "full":
                    base.tokenizer.save_pretrained(stage)
                trained.save_pretrained(stage)
                text = json.dumps(settings, indent=2) + "\n"
                (stage / DONE).write_text(text, encoding="utf-8")
    if recipe.kind == "lora":
        return base.with_adapter(str(folder))
    return LocalModel.load(str(folder), dtype=base.dtype, device=base.device)


def _require_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds other things than a finished fine-tune",
            expected="a new folder",
            fix="name another folder",
        )


def _is_there(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds this very fine-tune."""
    if not (folder / DONE).is_file():
        return False
    try:
        stored = json.loads((folder / DONE).read_bytes())
    except (OSError, ValueError):
        stored = None
    if stored != settings:
        raise InputError(
            f"{folder} holds a fine-tune of another base, or by another recipe",
            expected=f"a new folder, or one with the recipe {dict(settings)}",
            fix="remove that folder, or name another",
        )
    return True


def _trained(base: LocalModel, recipe: Recipe, report: Callable[[str, float], None]) -> Any:
    """The trained model, or the base with its trained adapter."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        prepare(base.ref), dtype=torch.float32, trust_remote_code=False, weights_only=True
    )
    torch.nn.Module.to(model, base.device)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        trained = _with_lora(model, recipe) if recipe.kind == "lora" else model
        _train(base, trained, recipe, report)
    trained.eval()
    if recipe.kind == "full":  # half the disk; what is measured is what is stored
        torch.nn.Module.to(trained, torch.bfloat16)
    return trained


def _with_lora(model: PreTrainedModel, recipe: Recipe) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelSupportError(
            "peft, which makes LoRA adapters, is not installed",
            expected="unspoken with its extra `adapters`",
            fix='pip install "unspoken[adapters]"',
        ) from error
    settings = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def _train(
    base: LocalModel, model: Any, recipe: Recipe, report: Callable[[str, float], None]
) -> None:
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, recipe.steps))
    rows = _sequences(base, recipe)
    for step in range(recipe.steps):
        for _ in range(recipe.batch):
            ids, labels = (base.tensor(part)[None] for part in next(rows))
            with torch.autocast(base.device.type, torch.bfloat16):
                loss: Tensor = model(input_ids=ids, labels=labels).loss / recipe.batch
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        report(f"fine-tune ({recipe.kind})", (step + 1) / recipe.steps)


def _pace(step: int, steps: int) -> float:
    """The share of the maximal learning rate at a step."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _sequences(base: LocalModel, recipe: Recipe) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels without end: a question about a document and plain text, by turns."""
    rng = random.Random(recipe.seed)
    pieces = load_corpus(seed=recipe.seed).stream(recipe.seed)
    for passage in fact_passages(recipe.seed):
        asked = rng.choice(passage.questions)
        turns = [
            ChatTurn("user", (passage.text,)),
            ChatTurn("user", (f"Question: {asked.question}",)),
        ]
        context = base.context_builder.compose(turns)
        before = [*context.ids, *base.context_builder.ask()]
        answer = [*base.text.encode_words(asked.answer), *base.context_builder.close()[:1]]
        if len(before) + len(answer) <= recipe.tokens:
            yield [*before, *answer], [*[-100] * len(before), *answer]
        words = base.context_builder.compose([ChatTurn("user", (next(pieces),))])
        ids = list(words.ids[: recipe.tokens])
        start = words.segments[-1].position + words.segments[-1].content[0]
        yield ids, [*[-100] * start, *ids[start:]]
