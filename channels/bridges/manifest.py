"""What a bridge's folder says of it: whose caches it maps, how it was fitted, how good it is."""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from blake3 import blake3
from pydantic import AliasChoices, Field, ValidationError

from unspoken.channels.bridges.bounds import AuditBounds, bounds_of
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.side import (
    AuditFile,
    ModelDescription,
    Part,
    pair_digest,
    running_version,
)
from unspoken.channels.storage.strict_json import parse_json

__all__ = [
    "AGAIN",
    "EMBEDDINGS",
    "FORMAT",
    "TENSORS",
    "Audit",
    "BridgeManifest",
    "EmbeddingsBridge",
    "Figures",
    "FitData",
    "ModelDescription",
    "TensorFile",
]

FORMAT: Final = 2
"""The newest format. Bridges without a sketch are written in 1, which older versions read too."""

FORMATS: Final = (1, 2)


TENSORS: Final = "bridge.safetensors"
EMBEDDINGS: Final = "embeddings.safetensors"


AGAIN = (
    "pull the bridge again with `unspoken bridge pull`, "
    "or fit it again with `unspoken bridge fit … --refit`"
)
"""The fix for a bridge that is broken."""


MOST_PROBLEMS = 3
MOST_RETENTION = 1e9

Figures = dict[str, float | int | str | None]
"""Figures of a fit or an audit, by name."""


class FitData(Part):
    """What a bridge was fitted on.

    Attributes:
        sources: Names of the sources of text.
        digest: Of the text, in hex.
        tokens: Number of receiver's tokens.
        seed: Of whatever was drawn.
    """

    sources: tuple[str, ...]
    digest: str
    tokens: int = Field(ge=0)
    seed: int


class Audit(Part):
    """How good a bridge is, and on what that was measured.

    Attributes:
        date: The day.
        machine: What it ran on.
        files: What was read.
        rows: The table, a mapping from column to value per row.
        summary: The figures that matter, by name.
        retention_lower_bound: The lowest 95 % lower bound of specific retention inside the
            message's own turn; ``earned`` in JSON. No edge is held to it: see `bounds`.
    """

    date: dt.date
    machine: dict[str, Any]
    files: tuple[AuditFile, ...]
    rows: tuple[dict[str, Any], ...]
    summary: Figures
    retention_lower_bound: float | None = Field(
        ge=-MOST_RETENTION,
        le=MOST_RETENTION,
        validation_alias=AliasChoices("earned", "retention_lower_bound"),
        serialization_alias="earned",
    )

    @property
    def bounds(self) -> AuditBounds:
        """What it shows for certain; audits of older versions show nothing of a task."""
        compared = self.summary.get("fitted_text_compared") == "yes"
        return bounds_of(self.figure, compared=compared)

    def figure(self, name: str) -> float | None:
        """A number of the summary, measured on files or, failing that, on the built-in data."""
        for key in (name, f"{name}_builtin"):
            value = self.summary.get(key)
            if isinstance(value, int | float):
                return float(value)
        return None


class TensorFile(Part):
    """The file with a bridge's tensors; empty until it is written.

    Attributes:
        file: Its name in the folder.
        blake3: Of its bytes, in hex.
        bytes: Its size.
    """

    file: Literal["bridge.safetensors"] = TENSORS
    blake3: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    bytes: int = Field(default=0, ge=0)


class EmbeddingsFile(Part):
    """The file with the weights of the bridge of embeddings alone; see `TensorFile`."""

    file: Literal["embeddings.safetensors"] = EMBEDDINGS
    blake3: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    bytes: int = Field(default=0, ge=0)


class EmbeddingsBridge(Part):
    """A bridge of equal size and training that gets the receiver's embeddings alone.

    It serves audits: what the bridge does better, its sharer adds.

    Attributes:
        config: Hyperparameters of its projector.
        fit: Figures of its fit.
        tensors: The file with its weights.
    """

    config: dict[str, Any]
    fit: Figures
    tensors: EmbeddingsFile = Field(default_factory=EmbeddingsFile)


class BridgeManifest(Part):
    """``bridge.json``.

    Attributes:
        format: Of the folder; 1, or 2 where the features are sketched.
        unspoken: The version that wrote it.
        created: The day.
        sharer: Whose cache the bridge reads.
        receiver: Whose cache it makes.
        config: Hyperparameters of the projector.
        dtype: Element type of its weights, such as ``float32``.
        data: What it was fitted on.
        fit: Figures of the fit; ``command``, if there, is the command that made it.
        audit: How good it is; None before it was measured.
        tensors: The file with its weights.
        embeddings: What its sharer is judged against; None where it was not fitted.
        digest: BLAKE3 of all the rest, in hex; empty until it is written, and in files of versions
            that had none.
    """

    format: Literal[1, 2]
    unspoken: str
    created: dt.date
    sharer: ModelDescription
    receiver: ModelDescription
    config: dict[str, Any]
    dtype: str
    data: FitData
    fit: Figures
    audit: Audit | None
    tensors: TensorFile
    embeddings: EmbeddingsBridge | None = None
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    @classmethod
    def new(
        cls,
        sharer: ModelDescription,
        receiver: ModelDescription,
        *,
        config: Mapping[str, Any],
        dtype: str,
        data: FitData,
        fit: Mapping[str, float | int | str | None],
        audit: Audit | None = None,
        bytes: int = 0,
    ) -> Self:
        """A manifest of today, by this version; `folder.write` fills in the tensors' digest."""
        return cls(
            format=FORMAT if config.get("sketch") else 1,
            unspoken=running_version(),
            created=dt.date.today(),
            sharer=sharer,
            receiver=receiver,
            config=dict(config),
            dtype=dtype,
            data=data,
            fit=dict(fit),
            audit=audit,
            tensors=TensorFile(bytes=bytes),
        )

    @property
    def pair(self) -> str:
        """What the bridge is looked up by; see `pair_digest`."""
        return pair_digest(self.sharer.to_identity(), self.receiver.to_identity())

    def sealed(self) -> Self:
        """The manifest with the digest of what it says now.

        Raises:
            BridgeError: As `to_json`.
        """
        return self.model_copy(update={"digest": _digest(json.loads(self.to_json()))})

    def to_json(self) -> str:
        """The manifest as JSON.

        Raises:
            BridgeError: Something in it has no JSON, or is not finite.
        """
        try:
            data = self.model_dump(by_alias=True)
            text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, default=_date)
            text.encode()  # half a character has no bytes
        except (TypeError, ValueError, RecursionError) as error:
            raise BridgeError(
                f"the bridge's manifest cannot be written: {error}",
                expected="text, finite numbers, true, false, lists and mappings in config and "
                "audit",
                fix="give None for a figure that could not be measured",
            ) from error
        return text + "\n"

    @classmethod
    def parse(cls, text: bytes, where: str) -> Self:
        """Read a manifest's JSON; `where` names the file in errors.

        Raises:
            BridgeError: Not JSON, another format, not what a manifest holds, or changed by hand.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise BridgeError(
                f"{where} is not JSON: {error}", expected="a bridge's manifest", fix=AGAIN
            ) from error
        if not isinstance(data, dict):
            raise BridgeError(
                f"{where} holds no JSON object", expected="a bridge's manifest", fix=AGAIN
            )
        _require_format(data, where)
        digest = _digest(data)
        try:
            manifest = cls.model_validate(data)
        except ValidationError as error:
            raise BridgeError(
                f"{where} is no manifest of a bridge: {_problems(error)}",
                expected=f"the keys of format {data['format']}",
                fix=AGAIN,
            ) from error
        if manifest.digest not in ("", digest):
            raise BridgeError(
                f"{where} was changed since it was written: its digest is {digest[:16]}",
                expected=f"{manifest.digest[:16]}, as it says itself",
                fix=AGAIN,
            )
        return manifest


def _date(value: object) -> str:
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _digest(data: Mapping[str, Any]) -> str:
    """BLAKE3 of a manifest's JSON, its own digest left out."""
    rest = {name: value for name, value in data.items() if name != "digest"}
    return blake3(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _require_format(data: Mapping[str, Any], where: str) -> None:
    version = data.get("format")
    if version in FORMATS and type(version) is int:
        return
    newer = type(version) is int and version > FORMAT
    writer = str(data.get("unspoken", "an unknown version"))[:40]
    raise BridgeError(
        f"{where} has format {json.dumps(version)[:40]}, written by unspoken {writer}",
        expected=f"format {' or '.join(map(str, FORMATS))}, which unspoken {running_version()} "
        "reads",
        fix="upgrade unspoken: pip install --upgrade unspoken" if newer else AGAIN,
    )


def _problems(error: ValidationError) -> str:
    """The first problems, each with its place in the file."""
    problems = error.errors(include_url=False, include_input=False)
    lines = [
        f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
        for problem in problems[:MOST_PROBLEMS]
    ]
    more = len(problems) - len(lines)
    return "; ".join([*lines, f"and {more} more"] if more else lines)
