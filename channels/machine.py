"""What a benchmark ran on."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from unspoken.channels.model import TextModel

__all__ = ["describe_machine"]


def describe_machine(model: TextModel) -> dict[str, Any]:
    """Processor, threads, versions, model and date."""
    device = model.device
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": model.ref,
        "dtype": str(model.dtype).removeprefix("torch."),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
