"""Accelerators on a machine that has none: with values, and with a strict conscience.

``fake:0`` and ``fake:1`` compute on the CPU. All else is as on CUDA: tensors say that they are
there, an operation refuses tensors of two devices, and each copy between devices and each wait for
a device is noted. So a test shows what would otherwise take a GPU: that decoding waits once a
round, that nothing is copied behind its back, and that every operand is where it must be.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration

aten: Any = torch.ops.aten

WAITS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
}
"""Operations whose result the host must know before it can go on."""

_COPIES = {"copy_", "_to_copy"}
_ODD = ("sparse", "quantized", "cudnn", "mkldnn", "nested", "from_file", "_make_dep_token")

notes: Counter[str] = Counter()
"""``wait OP``, ``upload``, ``download`` (which waits, too) and ``cross``; see `noted`."""


class Pretended(Tensor):
    """A tensor that says it is on a fake device; `inner` is on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> "Pretended":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=device,
            requires_grad=False,
        )
        made.inner = real
        return made  # type: ignore[no-any-return]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Pretended({self.inner!r}, {self.device})"

    def untyped_storage(self) -> torch.UntypedStorage:
        """What its memory is counted by."""
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        """The values, on the host."""
        notes["wait tolist"] += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = op.overloadpacket.__name__
    if name in _COPIES:
        return _copy(op, args, kwargs)
    if name == "_fused_sdp_choice":
        return 0  # the path of two products; the others are another device's own
    tensors = list(_tensors((*args, *kwargs.values())))
    device = _one_device(name, tensors, kwargs.pop("device", None))
    masked = name in {"index", "index_put", "index_put_"} and any(
        part is not None and part.dtype == torch.bool for part in args[1]
    )
    if name in WAITS or masked:
        notes[f"wait {name}"] += 1
    if device.type == "fake" and "pin_memory" in kwargs:
        kwargs["pin_memory"] = None
    result = op(*_inner(args), **_inner(kwargs))
    if op._schema.is_mutable and result is _inner(args[0]):
        return args[0]
    return _pretend(result, device)


def _one_device(name: str, tensors: list[Tensor], asked: Any) -> torch.device:
    if asked is not None:
        return torch.device(asked)
    devices = {part.device for part in tensors if part.ndim or part.device.type == "fake"}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices)))
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {found}")
    return devices.pop()


def _copy(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    into = op.overloadpacket.__name__ == "copy_"
    source = args[1] if into else args[0]
    target = args[0].device if into else torch.device(kwargs.pop("device", None) or source.device)
    if source.device != target:
        ends = source.device.type, target.type
        sort = {("cpu", "fake"): "upload", ("fake", "cpu"): "download"}.get(ends, "cross")
        notes[sort] += 1
        if sort == "upload" and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            notes["wait upload"] += 1
    result = op(*_inner(args), **_inner(kwargs))
    return args[0] if into else _pretend(result, target)


def _tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, (tuple, list)):
            yield from _tensors(part)


def _inner(part: Any) -> Any:
    if isinstance(part, Pretended):
        return part.inner
    if isinstance(part, (tuple, list)):
        return type(part)(map(_inner, part))
    return {key: _inner(one) for key, one in part.items()} if isinstance(part, dict) else part


def _pretend(part: Any, device: torch.device) -> Any:
    if device.type != "fake" or isinstance(part, Pretended):
        return part
    if isinstance(part, Tensor):
        return Pretended(part, device)
    several = isinstance(part, (tuple, list))
    return type(part)(_pretend(one, device) for one in part) if several else part


def _factory(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(op, args, kwargs)


def _factories() -> Iterator[tuple[str, Any]]:
    """Operations that make a tensor out of none: they have no argument that says where."""
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith("aten::") or any(odd in full for odd in _ODD):
            continue
        name, _, overload = full.removeprefix("aten::").partition(".")
        packet = getattr(aten, name, None)
        op = getattr(packet, overload or "default", None)
        if op is None:
            continue
        kinds = {argument.name: str(argument.type) for argument in op._schema.arguments}
        makes = [str(returned.type) for returned in op._schema.returns] == ["Tensor"]
        if makes and "device" in kinds and not any("Tensor" in kind for kind in kinds.values()):
            yield full.removeprefix("aten::"), op


_LIBRARY: Any = None


class _Module(backend_registration._DummyBackendModule):
    """``torch.fake``; not available, so that ``auto`` still means the CPU for everybody else."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 2


def install() -> None:
    """Make the devices known to torch, once a process."""
    global _LIBRARY
    if _LIBRARY is not None:
        return
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch takes no device that is written in Python")
    backend_registration._setup_privateuseone_for_python_backend("fake", _Module())
    _LIBRARY = torch.library.Library("aten", "IMPL")
    for name, op in _factories():
        _LIBRARY.impl(name, _factory(op), "PrivateUse1")
    # `torch.tensor(data, device=...)` goes past `__torch_dispatch__`.
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    result: Tensor = _copy(aten.copy_.default, (target, source, non_blocking), {})
    return result


@contextmanager
def noted() -> Iterator[Counter[str]]:
    """What is noted while the block runs."""
    before = notes.copy()
    seen: Counter[str] = Counter()
    try:
        yield seen
    finally:
        seen.update(notes - before)
