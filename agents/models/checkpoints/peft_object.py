"""A model that peft has wrapped in this program: its base, and its adapter as peft saves it."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from unspoken.channels.errors import ModelSupportError


def is_peft(model: nn.Module) -> bool:
    """Whether this is a `PeftModel`, found without importing peft."""
    return any(base.__module__.startswith("peft.") for base in type(model).__mro__)


@contextmanager
def unwrapped(model: Any) -> Iterator[tuple[Any, Path]]:
    """The base of a `PeftModel`, in modules of its own, and a folder with the adapter that is on.

    The base lies in the same memory. The object itself is left as it is: whatever it switches on or
    trains later, this adapter stays as it was.

    Args:
        model: The `PeftModel`.

    Raises:
        ModelSupportError: None or several of its adapters are on, or they were merged.
    """
    active = list(model.active_adapters)
    merged = [name for name, part in model.named_modules() if getattr(part, "merged", False)]
    if len(active) != 1 or merged:
        raise ModelSupportError(
            "the adapters of the model are merged into its weights"
            if merged
            else f"{len(active)} adapters of the model are on: {', '.join(active) or 'none'}",
            expected="one adapter that is on, beside the weights",
            fix="call unmerge_adapter() on it"
            if merged
            else "call set_adapter(name) on it, or give its base and the adapter's folder",
        )
    base = copy.deepcopy(
        model,
        {
            id(value): nn.Parameter(value.detach(), requires_grad=False)
            for value in model.get_base_model().parameters()
        },
    ).unload()
    base.__dict__.pop("peft_config", None)
    base._hf_peft_config_loaded = False
    with tempfile.TemporaryDirectory(prefix="unspoken-adapter-") as place:
        model.save_pretrained(place, selected_adapters=active, safe_serialization=True)
        folder = Path(place)
        yield base, folder if active == ["default"] else folder / active[0]
