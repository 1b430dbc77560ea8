"""Many threads that write one thing at once: a packet, a note, a profile, a bridge."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from flows import stored_model
from messages import WORDS, message_of
from sample_bridges import ALPHA, BETA, manifest, tensors
from sample_profiles import point, profile_of

from unspoken.agents.models.notes import cached_identity, folder_key, remember
from unspoken.channels.bridges.folder import verify
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.finetunes.store import ProfileStore
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.storage.files import replace_file, write_json

THREADS, ROUNDS = 8, 6


def all_at_once(write: Callable[[int], object]) -> None:
    """Let every thread write, each with its number, beginning together."""
    start = Barrier(THREADS)

    def go(number: int) -> None:
        start.wait()
        write(number)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(go, range(THREADS)))


def left_over(folder: Path) -> list[str]:
    """What writers left beside what they wrote, but for their locks."""
    return [path.name for path in folder.rglob(".*") if path.suffix != ".lock"]


def test_a_file_is_what_one_of_its_writers_wrote(tmp_path: Path) -> None:
    """Whole, however many write it, and nothing is left beside it."""
    file = tmp_path / "note.json"
    for _ in range(ROUNDS):
        all_at_once(lambda number: write_json(file, {"number": number, "long": ["x" * 100] * 2000}))
        assert json.loads(file.read_text())["number"] in range(THREADS)
    assert left_over(tmp_path) == []


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """The temporary file goes, and the file of before stays."""
    file = tmp_path / "note.txt"
    file.write_text("before")

    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        replace_file(file, fill)
    assert file.read_text() == "before" and left_over(tmp_path) == []


def test_threads_write_one_packet(tmp_path: Path, cache: Path) -> None:
    """The packet is one of theirs, whole and genuine."""
    model = stored_model(tmp_path / "model")
    messages = [message_of(model, WORDS, name=f"reader{number}") for number in range(THREADS)]
    file, key = tmp_path / "packets" / "one.safetensors", bytes(range(32))
    file.parent.mkdir()
    for _ in range(ROUNDS):
        all_at_once(lambda number: write_packet(messages[number], file, key=key))
        read = read_packet(file, model, key=key)
        assert read.sharer in {message.sharer for message in messages}
    assert left_over(file.parent) == []


def test_threads_store_one_bridge_and_one_profile(tmp_path: Path, cache: Path) -> None:
    """Each store has one folder of the pair, and what is in it is of one writer."""
    bridges, profiles = BridgeStore(tmp_path / "bridges"), ProfileStore(tmp_path / "profiles")
    models = stored_model(tmp_path / "a"), stored_model(tmp_path / "b", 1)

    def save(number: int) -> None:
        bridges.save(manifest(), tensors(number))
        profiles.save(profile_of(*models, point((), 0.1 * number, layers=2)))

    all_at_once(save)
    folder = bridges.find(ALPHA, BETA)
    assert folder is not None and verify(folder).pair == manifest().pair
    profile = profiles.find(models[0].identity, models[1].identity)
    assert profile is not None
    for store in (bridges, profiles):
        assert len(store.entries()) == 1 and left_over(store.root) == []


def test_threads_note_one_identity(tmp_path: Path, cache: Path) -> None:
    """A note is whole at any time."""
    model = stored_model(tmp_path / "model")
    folder = tmp_path / "model"
    for _ in range(ROUNDS):
        all_at_once(lambda number: remember(folder, model.identity, folder_key(folder)))
        assert cached_identity(folder) == model.identity
    assert left_over(cache) == []
