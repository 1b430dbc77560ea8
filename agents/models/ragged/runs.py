"""Where the rows of a prefix lie: in which memory, and which other prefixes have them too."""

from collections.abc import Hashable
from dataclasses import dataclass

from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that follow each other in one piece of memory, on all layers of one window.

    Attributes:
        memory: Equal for runs that begin at one place of one memory on each of these layers. Two
            states may have some layers in common and not others, as across fine-tunes.
        begin, end: Their positions.
    """

    memory: Hashable
    begin: int
    end: int


def runs_of(prefix: KVState, geometry: CacheGeometry) -> dict[int | None, tuple[Run, ...]] | None:
    """The runs of a prefix by window; None where layers of one window are cut differently."""
    by_window: dict[int | None, list[int]] = {}
    for number, shape in enumerate(geometry.layers):
        by_window.setdefault(shape.window, []).append(number)
    runs: dict[int | None, tuple[Run, ...]] = {}
    for window, numbers in by_window.items():
        layers = [prefix.layers[number] for number in numbers]
        cuts = {(layer.first, *(keys.shape[1] for keys, _ in layer.chunks)) for layer in layers}
        if len(cuts) > 1:
            return None
        found, begin = [], layers[0].first
        for pieces in zip(*(layer.chunks for layer in layers), strict=True):
            end = begin + pieces[0][0].shape[1]
            memory = tuple(part.data_ptr() for piece in pieces for part in piece)
            found.append(Run(memory, begin, end))
            begin = end
        runs[window] = tuple(found)
    return runs
