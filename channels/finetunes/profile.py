"""What a profile says: ranges of layers, their cost, their distance from the own prefill."""

import datetime as dt
import json
from typing import Any, Final, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, model_validator

from unspoken.channels.errors import InputError, ProfileError
from unspoken.channels.finetunes.recompute import LayerRanges, check_layer_ranges, layers_of, named
from unspoken.channels.storage.side import AuditFile, ModelDescription, Part, pair_digest

FILE: Final = "profile.json"

SETTINGS = (
    "forced_tokens",
    "judged_on",
    "message_tokens",
    "searched_on",
    "seed",
    "sink",
    "timed_tokens",
)

PREFIX = "prefix"
"""The place of a message that stands after the same tokens at both ends."""

AGAIN = "measure it again with `unspoken profile fit SHARER RECEIVER --again`"


class Estimate(Part):
    """How far a receiver is from what it says after its own prefill.

    Attributes:
        kl: KL(own prefill || this), nats a token, mean over passages.
        low: Lower end of its 95 % interval over passages.
        high: Upper end.
        top1: Share of tokens with the same likeliest one.
    """

    kl: float
    low: float
    high: float
    top1: float = Field(ge=0, le=1)


class Point(Part):
    """One choice of layers to recompute.

    Attributes:
        layer_ranges: First and last + 1 of each range.
        share: Layers in ranges, as a share of all.
        bytes_per_token: Bytes of state that travel per token: the other layers, and hidden states
            at the first layers of ranges.
        places: By place: ``prefix``, or ``after N`` tokens of the receiver's own.
        speedup: Time to the first token by text over that by this, at the size that the profile
            names.
    """

    layer_ranges: LayerRanges = Field(
        validation_alias=AliasChoices("groups", "layer_ranges"),
        serialization_alias="groups",  # its name in stored profiles and in --json
    )
    share: float = Field(ge=0, le=1)
    bytes_per_token: int = Field(ge=0)
    places: dict[str, Estimate]
    speedup: float | None = None

    @property
    def named(self) -> str:
        """The ranges as layer numbers, for people."""
        return named(self.layer_ranges)

    def worst(self, *, moved: bool) -> Estimate | None:
        """The estimate that counts: at the prefix, or, `moved`, the worst of all places.

        None where only the prefix was measured, and `moved`.
        """
        if not moved:
            return self.places[PREFIX]
        if len(self.places) < 2:
            return None
        return max(self.places.values(), key=lambda estimate: estimate.high)

    @property
    def slow(self) -> bool:
        """Whether it was measured to be no faster than text."""
        return self.speedup is not None and self.speedup <= 1


class Profile(Part):
    """``profile.json``.

    Attributes:
        format: Of the folder; 1.
        unspoken: The version that wrote it.
        created: The day.
        sharer: Whose state is read.
        receiver: Who recomputes some layers.
        data: What it was measured on.
        settings: How: tokens of a message and of what is forced after it, passages, seed.
        machine: What it ran on.
        points: The front, from the least recomputed to the most.
        searched: How many choices of layers were looked at.
        command: The command that made it.
    """

    format: Literal[1] = 1
    unspoken: str
    created: dt.date
    sharer: ModelDescription
    receiver: ModelDescription
    data: AuditFile
    settings: dict[str, int]
    machine: dict[str, Any]
    points: tuple[Point, ...] = Field(min_length=1)
    searched: int = Field(ge=0)
    command: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layers = len(self.receiver.geometry.layers)
        lacking = [name for name in SETTINGS if name not in self.settings]
        if lacking:
            raise ValueError(f"settings without {lacking[0]}")
        for point in self.points:
            try:
                recomputed = layers_of(check_layer_ranges(point.layer_ranges, layers))
            except InputError as error:
                raise ValueError(error.found) from None
            if round(point.share * layers) != recomputed:
                raise ValueError(f"a share of {point.share:g} for the layers {point.named}")
            if PREFIX not in point.places or set(point.places) != set(self.points[0].places):
                raise ValueError(f"the layers {point.named} were measured at other places")
        return self

    @property
    def pair(self) -> str:
        """What it is looked up by."""
        return pair_digest(self.sharer.to_identity(), self.receiver.to_identity())

    def estimates(self, *, moved: bool) -> list[Estimate]:
        """Estimates of the points that save the receiver work, at the prefix or elsewhere."""
        worst = (point.worst(moved=moved) for point in self.points if point.share < 1)
        return [estimate for estimate in worst if estimate is not None]

    def within(self, max_kl: float, *, moved: bool) -> list[Point]:
        """The points whose KL is, with its interval, at most `max_kl`; fewest layers first.

        One that recomputes all layers is not among them: text is exact.

        Args:
            max_kl: Bound in nats a token, compared with the upper end of the interval.
            moved: Whether the message stands after other tokens than at its sharer.
        """
        chosen = []
        for point in sorted(self.points, key=lambda point: point.share):
            worst = point.worst(moved=moved)
            if worst is not None and worst.high <= max_kl and point.share < 1:
                chosen.append(point)
        return chosen

    def to_json(self) -> str:
        """Two spaces deep, a newline at the end."""
        content = self.model_dump(mode="json", by_alias=True)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> "Profile":
        """Read ``profile.json``.

        Raises:
            ProfileError: It is not one; `name` says which file.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ProfileError(
                f"{name} is no profile: {place}: {first['msg']}",
                expected="a profile.json of format 1",
                fix=AGAIN,
            ) from None
