"""Whether modules still compute what they did."""

from collections.abc import Iterable
from typing import TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

Hook = TypeVar("Hook")

_CAPTURES = "transformers.utils.output_capturing"
"""Whose hooks transformers leaves on a model that was once asked for its hidden states. They look,
and only while the model itself is called."""


def looking(hook: Hook) -> Hook:
    """Mark a hook that changes nothing."""
    hook.__dict__["only_looks"] = True
    return hook


class Guard:
    """Tells whether somebody hooked or replaced modules, their code or their parameters.

    A model has some hundred modules and is looked at before each token, so what is looked at is
    gathered once.

    Args:
        model: The model as it is now.
        called: Modules of it that are called as they are; only whether they are there is looked at.
    """

    def __init__(self, model: nn.Module, called: Iterable[nn.Module]) -> None:
        everything = tuple(model.modules())
        left = {inner for one in called for inner in one.modules()}
        modules = [one for one in everything if one not in left]
        self._children = [
            (one._modules, name, child)
            for one in everything
            for name, child in one._modules.items()
        ]
        self._hooks = [
            hooks for one in modules for hooks in (one._forward_hooks, one._forward_pre_hooks)
        ]
        self._own = [vars(one) for one in modules]
        self._copies = [own.get("copied") for own in self._own]  # of packed linear layers
        self._tensors = [
            (one._parameters, name, tensor, tensor.data_ptr(), tensor._version)
            for one in modules
            for name, tensor in one._parameters.items()
            if tensor is not None
        ]

    def holds(self) -> bool:
        """Whether all is as it was."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return False
        for hooks in self._hooks:
            if hooks and not all(map(_only_looks, hooks.values())):
                return False
        for children, name, child in self._children:
            if children.get(name) is not child:
                return False
        for own, copied in zip(self._own, self._copies, strict=True):
            if "forward" in own or own.get("copied") is not copied:
                return False
        for parameters, name, tensor, place, version in self._tensors:
            if parameters.get(name) is not tensor or tensor.data_ptr() != place:
                return False
            if tensor._version != version:
                return False
        return True


def _only_looks(hook: object) -> bool:
    looks = getattr(hook, "only_looks", False)
    return looks is True or getattr(hook, "__module__", None) == _CAPTURES
