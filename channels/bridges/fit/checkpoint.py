"""What a killed fit goes on from, and what makes it go on the same."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from unspoken.channels.storage.files import replace_file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One fit's file.

    Attributes:
        file: Where it is; None keeps nothing.
    """

    file: Path | None

    @classmethod
    def of(cls, work: Path | None, kind: str, print_of_fit: str) -> "Checkpoint":
        """The file of a fit in a folder; each kind and each settings have a file of their own."""
        return cls(None if work is None else work / f"{kind}-{print_of_fit}.pt")

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last; None where there is nothing that can be read."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            state = torch.load(self.file, map_location=device, weights_only=True)
        except Exception:  # a half-written or foreign file: begin again, the fit is seeded
            return None
        return state if isinstance(state, dict) else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Put plain data and tensors in the place of what was saved before, at once."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, lambda path: torch.save(dict(state), path))


def forget(work: Path, kind: str) -> None:
    """Remove what fits of one kind left in a folder, and the folder where nothing else is in it."""
    for file in work.glob(f"{kind}-*.pt"):
        file.unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


def fingerprint(settings: Any, corpus: str, dtypes: Sequence[torch.dtype]) -> str:
    """What must be equal for a fit to go on; more minutes or steps may be given the second time.

    Args:
        settings: The fit's settings, a dataclass.
        corpus: Digest of the text.
        dtypes: Of all models that take part.
    """
    shape = {
        name: value
        for name, value in asdict(settings).items()
        if name not in ("minutes", "steps", "patience", "every")
    }
    text = repr((sorted(shape.items()), corpus, [str(dtype) for dtype in dtypes]))
    return blake3(text.encode()).hexdigest()[:12]


def peak_memory_gb() -> float | None:
    """The most main memory this process has held, GB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for a while; the rest of the program then draws on as before."""
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        yield
