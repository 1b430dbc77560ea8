"""Stand-ins to test a workflow with: a scripted model, a tiny random model, a fake bridge."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.agents.testing.bridge import FakeBridge
    from unspoken.agents.testing.scripted import ScriptedModel
    from unspoken.agents.testing.tiny import tiny_model
    from unspoken.agents.testing.tokenizer import tiny_tokenizer

__all__ = ["FakeBridge", "ScriptedModel", "tiny_model", "tiny_tokenizer"]

_HOMES = {
    "FakeBridge": "bridge",
    "ScriptedModel": "scripted",
    "tiny_model": "tiny",
    "tiny_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use (PEP 562): a script needs no model classes."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
