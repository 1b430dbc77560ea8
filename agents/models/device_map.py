"""One model over several devices: where its parts go, and what crosses between them.

A part is the embedding, a decoder layer, the norm or the head. Each moves what it is given to its
own device before it computes, by a hook that stays. What all layers are given, such as a mask,
crosses once a device and not once a layer. Weights stay ordinary parameters, none is offloaded: so
the identity is looked at as ever, and a copy of the model is spread as it is.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unspoken.agents.models.pretrained import cast, find_device
from unspoken.channels.errors import ModelSupportError

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to share a model out, as transformers names them; ``auto`` is ``balanced``."""

Modules = Mapping[str, str | int | torch.device]
"""A device by module's name, as in transformers' ``device_map``; ``""`` is the whole model."""


def asked_map(device: object) -> str | Modules | None:
    """What ``{"map": …}`` asks for: a strategy or devices by module; None where it is one device.

    Raises:
        ModelSupportError: A mapping that is none of these.
    """
    if not isinstance(device, Mapping):
        return None
    wanted = device.get("map")
    known = wanted in STRATEGIES if isinstance(wanted, str) else isinstance(wanted, Mapping)
    if set(device) != {"map"} or not known:
        raise ModelSupportError(
            f"device {dict(device)!r} is not a map",
            expected=f'{{"map": …}} with {", ".join(STRATEGIES)}, or with a device by module',
            fix='write device={"map": "auto"}, or name one device',
        )
    return wanted


def main_device(device: object) -> torch.device:
    """Where a model is to be asked; of a map, where it begins, or an accelerator if there is one.

    Raises:
        ModelSupportError: A device that is not available, or a mapping that is no map.
    """
    wanted = asked_map(device)
    if wanted is None:
        return find_device(device)  # type: ignore[arg-type]  # a name or a device
    if isinstance(wanted, str):
        return find_device("auto")
    return next((_device(name, first) for name, first in wanted.items()), torch.device("cpu"))


def place(model: PreTrainedModel, dtype: torch.dtype | None, *, device: object) -> bool:
    """Bring a model from the CPU to its device or devices, and to a type.

    Args:
        model: The model, in place.
        dtype: As `unspoken.agents.models.pretrained.cast` takes it.
        device: A device, or a map of several; see `LocalModel.load`.

    Returns:
        Whether values were rounded.

    Raises:
        ModelSupportError: As `find_map`, and as `cast`.
    """
    wanted = asked_map(device)
    if wanted is None:
        nn.Module.to(model, find_device(device))  # type: ignore[arg-type]  # a name or a device
        return cast(model, dtype)
    rounded = cast(model, dtype)  # before a strategy counts bytes
    spread(model, find_map(model, wanted))
    return rounded


def as_written(device: object) -> object:
    """A device or a map as a workflow file has it."""
    if not isinstance(device, Mapping):
        return str(device)
    wanted = device["map"]
    if isinstance(wanted, str):
        return {"map": wanted}
    return {"map": {name: str(_device(name, where)) for name, where in wanted.items()}}


def find_map(model: PreTrainedModel, wanted: str | Modules) -> dict[str, torch.device]:
    """The device of each part of a model, by the part's name.

    Raises:
        ModelSupportError: A device that is not available, a model that does not fit, a map that
            names no part of the model, names less than a part, or leaves parts out.
    """
    given = _inferred(model, wanted) if isinstance(wanted, str) else wanted
    devices = {name: _device(name, device) for name, device in given.items()}
    parts = dict(_parts(model))
    for name in devices:
        if name and not any(f"{part}.".startswith(f"{name}.") for part in parts):
            raise ModelSupportError(
                f"the device map names {name!r}",
                expected=f"parts of {type(model).__name__}: {', '.join(_short(parts))}",
                fix="name a whole layer, or what stands above it; layers are not split",
            )
    found: dict[str, torch.device] = {}
    for part, module in parts.items():
        above = [name for name in devices if not name or f"{part}.".startswith(f"{name}.")]
        if above:
            found[part] = devices[max(above, key=len)]
        elif next(module.parameters(), None) is None and found:  # angles, which belong nowhere
            found[part] = next(iter(found.values()))
        else:
            raise ModelSupportError(
                f"the device map leaves out {part!r}",
                expected="a device for every part of the model",
                fix='add it, or give all that is not named a device under the name ""',
            )
    return found


def spread(model: PreTrainedModel, devices: Mapping[str, torch.device]) -> None:
    """Move each part of a model to its device, and hook it to fetch there what it is given.

    Args:
        model: The model, in place.
        devices: See `find_map`.
    """
    parts = dict(_parts(model))
    for part, module in parts.items():
        nn.Module.to(module, devices[part])
    first = next(iter(devices.values()))
    shared = _Crossed()
    for whole in {id(model): model, id(model.base_model): model.base_model}.values():
        for tensor in (*whole.parameters(recurse=False), *whole.buffers(recurse=False)):
            tensor.data = tensor.data.to(first)
        whole.register_forward_pre_hook(_Fetch(first, shared), with_kwargs=True)
    for part, module in parts.items():
        own = next(module.parameters(), None)  # tied weights are where the last of them went
        where = devices[part] if own is None else own.device
        module.register_forward_pre_hook(_Fetch(where, shared), with_kwargs=True)


def _parts(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """What is not split, with its name: layers one by one, and what stands beside them."""
    base: nn.Module = model.base_model
    prefix = next(name for name, module in model.named_modules() if module is base)
    for name, module in base.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(module, nn.ModuleList):
            yield from ((f"{path}.{number}", layer) for number, layer in enumerate(module))
        else:
            yield path, module
    if model is not base:
        yield from ((name, part) for name, part in model.named_children() if part is not base)


def _short(parts: Mapping[str, nn.Module]) -> Iterator[str]:
    """Parts to name in an error: of the layers the first alone."""
    for part in parts:
        number = part.rpartition(".")[2]
        if number == "0" or not number.isdigit():
            yield part


def _device(name: str, device: str | int | torch.device) -> torch.device:
    if device == "disk":
        raise ModelSupportError(
            f"the device map puts {name or 'the model'!r} on disk",
            expected="devices that hold the weights; none are offloaded",
            fix="use fewer bytes (dtype: bfloat16), more devices, or a smaller model",
        )
    if not isinstance(device, int):
        return find_device(device)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return find_device(f"{'cuda' if kind is None else kind.type}:{device}")


def _inferred(model: PreTrainedModel, strategy: str) -> Modules:
    """What accelerate makes of a strategy, with whole layers."""
    try:
        from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map
    except ImportError as error:
        raise ModelSupportError(
            f"device {{map: {strategy}}} needs accelerate, which is not installed",
            expected="accelerate, which shares the model out by the memory of the devices",
            fix="pip install 'unspoken[devices]', or give a device by module",
        ) from error
    whole = sorted({type(part).__name__ for name, part in _parts(model) if name[-1].isdigit()})
    if strategy == "sequential":
        memory = get_max_memory()
    else:
        low = strategy == "balanced_low_0"
        memory = get_balanced_memory(model, no_split_module_classes=whole, low_zero=low)
    placed = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    left = [name for name, device in placed.items() if device in ("cpu", "disk")]
    if left and not set(memory) <= {"cpu", "disk"}:
        raise ModelSupportError(
            f"the devices have no room for {left[0]!r} and what follows it",
            expected="accelerators that hold all weights together; none are offloaded",
            fix="use fewer bytes (dtype: bfloat16), more devices, a smaller model, or device: cpu",
        )
    return placed  # type: ignore[no-any-return]  # accelerate has no types


_REMEMBERED = 64
"""Most tensors that are remembered; a forward brings a handful to each device."""


class _Crossed:
    """What has crossed lately, so that it does so once a device."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.device], tuple[Tensor, int, Tensor]] = {}

    def to(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor on a device; one that was written to since it crossed does so again."""
        if tensor.device == device:
            return tensor
        key = id(tensor), device
        source, version, copied = self._copies.get(key, (None, 0, tensor))
        if source is not tensor or version != tensor._version:
            if len(self._copies) >= _REMEMBERED:
                self._copies.clear()
            copied = tensor.to(device, non_blocking=device.type == "cuda")
            self._copies[key] = tensor, tensor._version, copied
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Crossed":
        return memo.setdefault(id(self), _Crossed())  # type: ignore[no-any-return]


class _Fetch:
    """A hook that brings a module's tensors to its device."""

    def __init__(self, device: torch.device, crossed: _Crossed) -> None:
        self._device, self._crossed = device, crossed

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._fetched(args), self._fetched(kwargs)

    def _fetched(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return self._crossed.to(given, self._device)
        if type(given) in (tuple, list):
            return type(given)(map(self._fetched, given))
        if type(given) is dict:
            return {name: self._fetched(part) for name, part in given.items()}
        return given
