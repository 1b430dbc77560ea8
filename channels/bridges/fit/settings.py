"""How bridges and their fusers are fitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What both kinds of fits have to be told.

    Attributes:
        minutes: Most minutes of training; 0 leaves the closed form as it is.
        steps: Most training steps, one message each; None for as many as the minutes allow.
        hidden, bottleneck: Widths of the trained part; see `ProjectorConfig` and `FuserConfig`.
        gram_tokens: Tokens that the closed form is solved from; None for six times the columns of
            its features, and 32,000 at least.
        batch: Messages per update.
        rate: Learning rate of what the closed form gave.
        residual_rate: Learning rate of all else.
        patience: Validation rounds without a gain until training stops.
        every: Seconds between validation rounds.
        seed: Of all that is drawn.
    """

    minutes: float = 40.0
    steps: int | None = None
    hidden: int = 512
    bottleneck: int = 128
    gram_tokens: int | None = None
    batch: int = 4
    rate: float = 1e-4
    residual_rate: float = 1e-3
    patience: int = 6
    every: float = 360.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings(TrainSettings):
    """How a bridge is fitted.

    Attributes:
        source_layers: How many of the sharer's layers are read; None for some 1,500 columns of
            them, 4 to 12.
        native_layers: How many layers the receiver runs itself over the message.
        embeddings: How many of the receiver's token embeddings are features.
        sketch: Columns that a source layer is brought to by its principal components, so that more
            layers are read; 0 for none. None for 256 with up to 12 layers, where all columns would
            leave the sharer fewer than half of them or fewer layers.
        rank: Width of the code; None for the widest whose weights stay within 16 MB, or with a
            larger receiver 3 % of its bytes and 10 % of its products, and 512 at least.
        columns: Most columns of features, which bounds the memory.
        longest: Tokens of the longest messages, as far as both models hold them. Lengths are drawn
            log-uniformly from 128 on. None for messages of some 230 tokens, as older versions had
            them.
        pool: Messages of 230 tokens that are kept to be learnt from again, or fewer longer ones.
        fresh: Every how many steps a message is new.
        likelihood: Weight of the cross-entropy beside the KL.
    """

    learning: ClassVar[tuple[str, ...]] = (
        "batch", "rate", "residual_rate", "pool", "fresh", "likelihood", "longest",
    )  # fmt: skip
    """How it learns, as a manifest's ``fit`` has it: a second fit is then trained alike."""

    source_layers: int | None = None
    native_layers: int = 0
    embeddings: int = 2
    sketch: int | None = None
    rank: int | None = None
    columns: int = 12_288
    longest: int | None = 4_096
    pool: int = 320
    fresh: int = 3
    likelihood: float = 0.3

    @classmethod
    def from_figures(cls, figures: Mapping[str, float | int | str | None], seed: int) -> Self:
        """How a stored bridge learnt; the defaults where a manifest of an older version is silent.

        Args:
            figures: The manifest's ``fit``.
            seed: Of the fit.
        """
        known = {name: figures[name] for name in cls.learning if figures.get(name) is not None}
        tokens = figures.get("closed_form_tokens")
        before = {"longest": None}  # messages had some 230 tokens
        return cls(
            seed=seed,
            gram_tokens=int(tokens) if tokens else None,
            **(before | known),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseSettings(TrainSettings):
    """How a fuser is fitted; its minutes include the validation rounds.

    Attributes:
        source_layers, own_layers: How many layers of either model are read, spread evenly up to the
            last.
        rank, own_rank: Widths of both codes; see `FuserConfig`.
        last: Whether every token gets the sharer's code of the last token too.
        contrast: Weight of the cross-entropy over a question's options beside that over the tokens
            of its answer.
        validation: Inputs of the validation.
    """

    minutes: float = 20.0
    hidden: int = 768
    bottleneck: int = 192
    gram_tokens: int = 6_000
    batch: int = 6
    every: float = 60.0
    source_layers: int = 6
    own_layers: int = 6
    rank: int = 256
    own_rank: int = 128
    last: bool = True
    contrast: float = 0.5
    validation: int = 72
