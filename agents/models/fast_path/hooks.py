"""Which hooks of modules change what they compute."""

from typing import TypeVar

from torch import nn

Hook = TypeVar("Hook")


_CAPTURES = "transformers.utils.output_capturing"
"""Whose hooks transformers leaves on a model that was once asked for its hidden states. They look,
and only while the model itself is called."""


def looking(hook: Hook) -> Hook:
    """Mark a hook that changes nothing."""
    hook.__dict__["only_looks"] = True
    return hook


def computes_as_written(module: nn.Module) -> bool:
    """Whether a module's own code is all that makes its output."""
    if "forward" in vars(module):
        return False
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        if hooks and not all(map(_only_looks, hooks.values())):
            return False
    return True


def _only_looks(hook: object) -> bool:
    looks = getattr(hook, "only_looks", False)
    return looks is True or getattr(hook, "__module__", None) == _CAPTURES
