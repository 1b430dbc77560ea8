"""A bridge's card, for people and for the Hub."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from ruamel.yaml import YAML
from sample_bridges import manifest, tensors

from unspoken.channels.bridges.folder import write


def front_matter(bridge: Path) -> dict[str, Any]:
    text = (bridge / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    fields = YAML(typ="safe").load(text.split("---\n")[1])
    assert isinstance(fields, dict)
    return fields


def test_the_card_has_front_matter_that_the_hub_reads(bridge: Path) -> None:
    """Valid YAML, with the library, tags and both models."""
    fields = front_matter(bridge)
    assert fields["library_name"] == "unspoken"
    assert fields["base_model"] == ["owner/Alpha", "owner/Beta"]
    assert {"unspoken", "kv-cache"} <= set(fields["tags"])
    loaded = huggingface_hub.ModelCard.load(bridge / "README.md")
    assert loaded.data.to_dict() == fields


@pytest.mark.parametrize(
    ("sharer", "receiver", "models"),
    [
        ("embedded:gemma3-270m", "b/c", ["google/gemma-3-270m", "b/c"]),
        ("/a folder: with 'quotes'", "b/c", ["b/c"]),
        ("a/b", "a/b", ["a/b"]),
        ("./x", "y.gguf", None),
    ],
)
def test_the_card_names_models_that_the_hub_knows(
    tmp_path: Path, sharer: str, receiver: str, models: list[str] | None
) -> None:
    """Folders and files are no base models; embedded models stand for their originals."""
    write(tmp_path / "bridge", manifest(sharer, receiver), tensors())
    assert front_matter(tmp_path / "bridge").get("base_model") == models


def test_the_card_tells_people(bridge: Path, tmp_path: Path) -> None:
    """Sizes, audit, use and the command that made it are all there."""
    text = (bridge / "README.md").read_text(encoding="utf-8")
    for part in (
        "# alpha → beta",
        "| KV heads | 1 | 1 |",
        "| qa | a \\| b | 2.5 | – |",
        "| retention | 0.8125 |",
        "qa.jsonl (40 rows)",
        "unspoken bridge pull",
        "unspoken bridge fit owner/Alpha owner/Beta",
        "| rank | 8 |",
    ):
        assert part in text, part
    write(tmp_path / "other", manifest(fit={"command": "make it so"}), tensors())
    other = (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert "make it so" in other and "Not measured yet" in other
