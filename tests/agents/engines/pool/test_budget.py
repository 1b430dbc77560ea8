"""How much memory states may take."""

import sys
from pathlib import Path

import pytest
import torch

from unspoken.agents.engines.pool import budget as module
from unspoken.agents.engines.pool.budget import Budget, free_bytes
from unspoken.channels import memory
from unspoken.channels.errors import InputError
from unspoken.channels.sizes import parse_bytes, shown_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("800000", 800_000),
        ("12b", 12),
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("20k", 20_000),
        ("20 kib", 20 * 1024),
        ("3M", 3_000_000),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    """With units of a thousand and of 1024, in any case, with or without a B."""
    assert parse_bytes(text) == nbytes == Budget(text).of(CPU)


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "0.1", "1..5GB", "2 XB", "2GBs", "1e9", "²"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|less than a byte"):
        parse_bytes(text)
    with pytest.raises(InputError, match="memory is"):
        Budget(text)


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")],
)
def test_bytes_are_shown(nbytes: int, shown: str) -> None:
    assert shown_bytes(nbytes) == shown


def test_the_default_is_half_of_what_was_free_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once a device; a turn alone may have all of it."""
    free = [1000]
    monkeypatch.setattr(module, "free_bytes", lambda device: free.pop())
    budget = Budget()
    assert [budget.of(CPU), budget.at_most(CPU), budget.of(CPU)] == [500, 1000, 500]
    assert Budget(300).of(CPU) == Budget(300).at_most(CPU) == 300


def test_a_device_that_tells_nothing_has_no_limit() -> None:
    assert Budget().of(torch.device("meta")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_container_has_what_its_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit less what is used; cached files make room. Without a limit, what the host has."""
    host = free_bytes(CPU)
    assert host is not None and host > 0
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300\nactive_file 100\n")
    assert free_bytes(CPU) != 500
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(CPU) == 500
