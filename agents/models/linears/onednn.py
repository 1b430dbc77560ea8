"""oneDNN's product with weights that are packed beforehand, and whether this CPU gains by it.

torch's own compiler uses the two operators, but their names are private. So they are looked for,
compared with the plain product and timed, once a process and kind of weights. Where anything is
amiss, the plain product stays.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import geometric_mean
from time import perf_counter, thread_time

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = {1: 4, 2: 4, 8: 2, 32: 1}
"""How often each number of rows is timed: one that decodes alone, small batches, a slice of a
prompt."""

_TRIES = 3
"""Most times that all is timed where nothing is gained: a neighbour may have been in the way."""

_SAMPLED = 1 << 22
"""Most values of the weights that are timed: with their copies more than most caches hold."""

_COMPARED = (1, 2, 3, 5, 8, 17, 32)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error, as a share of the largest value: the order of the sums differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What is known of packed products on this CPU.

    Attributes:
        gain: The plain product's time over the packed one's: the geometric mean over `ROUNDS`.
        pads: Whether a single row is computed as two, since it would come out otherwise.
        rows_alike: Whether a row's result is the same, bit for bit, in a batch of any size.
    """

    gain: float
    pads: bool
    rows_alike: bool


def pack(weight: Tensor) -> Tensor:
    """A packed copy of a weight (out, in)."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight)
    return packed


def multiply(input: Tensor, packed: Tensor, bias: Tensor | None, *, pads: bool) -> Tensor:
    """The product of (…, in) with a packed weight, (…, out).

    Args:
        input: The rows.
        packed: What `pack` made.
        bias: Added to each row, (out,).
        pads: Whether a single row is computed as two.
    """
    rows = input.reshape(-1, input.shape[-1])  # the operator takes longer for more dimensions
    single = pads and rows.shape[0] == 1
    if single:
        rows = rows.expand(2, -1).contiguous()
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, packed, bias, "none", [], "")
    return (output[:1] if single else output).view(*input.shape[:-1], packed.shape[0])


def serves(dtype: torch.dtype) -> str | None:
    """Why packed products of a dtype are not available here; None where they are."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no oneDNN"
    if dtype not in _TOLERANCE:
        return f"oneDNN packs no {str(dtype).removeprefix('torch.')}"
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this CPU has no instructions for bfloat16"
        multiply(
            torch.ones(2, 2, dtype=dtype), pack(torch.ones(2, 2, dtype=dtype)), None, pads=False
        )
    except (AttributeError, RuntimeError, TypeError):  # private names: they may go or change
        return "this build of torch packs no weights"
    return None


def try_packing(groups: Sequence[Sequence[Tensor]]) -> Packing | str:
    """What packing some weights of one dtype brings here, or why it serves nothing.

    It takes some 0.1 s, up to 0.3 s where nothing is gained, once a process for weights of the
    same shapes.

    Args:
        groups: All that are to be packed, (out, in) each, those of a group together; a part of them
            is tried.
    """
    shapes = tuple(tuple(tuple(weight.shape) for weight in group) for group in groups)
    key = (groups[0][0].dtype, torch.get_num_threads(), shapes)
    if key not in _TRIED:
        _TRIED[key] = serves(groups[0][0].dtype) or _tried(_sampled(groups))
    return _TRIED[key]


_TRIED: dict[Hashable, Packing | str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """Weights that are multiplied with one input, and their packed copy.

    Attributes:
        inputs: Inputs to try, (rows, in).
    """

    weights: list[Tensor]
    packed: Tensor
    inputs: Tensor

    def plain(self, rows: int) -> list[Tensor]:
        """Their products with so many inputs as torch computes them."""
        return [F.linear(self.inputs[:rows], weight) for weight in self.weights]

    def fast(self, rows: int, pads: bool) -> Tensor:
        """The packed product, (rows, all outputs)."""
        return multiply(self.inputs[:rows], self.packed, None, pads=pads)


def _sampled(groups: Sequence[Sequence[Tensor]]) -> list[_Sample]:
    """Weights from all over the model, large ones cut, of at most `_SAMPLED` values."""
    cut = [
        [weight[: max(1, _SAMPLED // 4 // weight.shape[1])].detach() for weight in group]
        for group in groups
    ]
    every = max(1, ceil(sum(weight.numel() for group in cut for weight in group) / _SAMPLED))
    samples, inputs = [], {}
    for group in cut[::-every]:  # from the end, where the vocabulary is
        weights = [torch.rand(one.shape, dtype=one.dtype) if one.is_meta else one for one in group]
        width, dtype = weights[0].shape[1], weights[0].dtype
        if width not in inputs:
            inputs[width] = _rows(width, dtype)
        packed = pack(torch.cat(weights))
        samples.append(_Sample(weights=weights, packed=packed, inputs=inputs[width]))
    return samples


@torch.no_grad()
def _tried(samples: list[_Sample]) -> Packing | str:
    distinct = list({one.packed.shape: one for one in samples}.values())
    if not all(map(_is_close, distinct)):
        return "packed weights give other results here"
    pads = any(_differs(one, 1, False) for one in distinct)
    alike = not any(_differs(one, rows, pads) for one in distinct for rows in _COMPARED)
    gain = 0.0
    for _ in range(_TRIES):
        gain = max(gain, geometric_mean(_gain(samples, rows, pads) for rows in ROUNDS))
        if gain >= 1:
            break
    return Packing(gain=gain, pads=pads, rows_alike=alike)


def _rows(width: int, dtype: torch.dtype) -> Tensor:
    """Inputs to try a product on, (rows, width)."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(max(*_COMPARED, *ROUNDS), width, generator=source).to(dtype)


def _is_close(sample: _Sample) -> bool:
    most = len(sample.inputs)
    expected = torch.cat(sample.plain(most), dim=-1).float()
    error = (sample.fast(most, False).float() - expected).abs().max()
    return bool(error <= _TOLERANCE[sample.inputs.dtype] * expected.abs().max())


def _differs(sample: _Sample, rows: int, pads: bool) -> bool:
    """Whether the first rows come out otherwise than in a larger batch."""
    whole = sample.fast(len(sample.inputs), False)
    return not torch.equal(sample.fast(rows, pads), whole[:rows])


def _gain(samples: list[_Sample], rows: int, pads: bool) -> float:
    """The time of plain products over that of packed ones.

    The two take turns over all weights, so that neither finds its own in a cache, and that a busy
    machine slows both.
    """
    clock = perf_counter if torch.get_num_threads() > 1 else thread_time

    def plain() -> None:
        for sample in samples:
            sample.plain(rows)

    def fast() -> None:
        for sample in samples:
            sample.fast(rows, pads)

    def seconds(run: Callable[[], None]) -> float:
        began = clock()
        run()
        return clock() - began

    taken = [(seconds(plain), seconds(fast)) for _ in range(ROUNDS[rows])]
    return min(first for first, _ in taken) / min(second for _, second in taken)
