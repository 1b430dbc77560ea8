"""States on disk, as packets under the digests of their bytes."""

from pathlib import Path

import anyio.to_thread
from blake3 import blake3

from unspoken.agents.engines.base import Engine, StateRef
from unspoken.agents.runs.faults import reporting_faults
from unspoken.channels.errors import StoreError
from unspoken.channels.message import Message, Segment
from unspoken.channels.storage.files import replace_file


def state_file(folder: Path, name: str) -> Path:
    """Where the state of this digest is."""
    return folder / f"{name}.packet"


def write_state(
    folder: Path, engine: Engine, agent: str, state: StateRef, ids: tuple[int, ...]
) -> str:
    """Write the state of a turn; the digest that is its name.

    Args:
        folder: Where to.
        engine: Whose state it is.
        agent: Whose turn it is.
        state: The ticket for it.
        ids: What it is of.

    Raises:
        StateError: A state that no packet takes.
        StoreError: The disk is full, or the folder cannot be written.
    """
    whole = Segment(role="assistant", ids=ids, content=(0, 0), text="", position=0)
    message = Message(
        sharer=agent, segments=(whole,), whole=True, context=ids, identity=engine.facts.identity
    )
    chunks = list(engine.export(state, message))
    digest = blake3()
    for chunk in chunks:
        digest.update(chunk)
    name = digest.hexdigest(length=20)
    with reporting_faults(folder, 0.0):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = state_file(folder, name)
        if not file.exists():
            replace_file(file, lambda path: _write(path, chunks))
    return name


def _write(path: Path, chunks: list[bytes | memoryview]) -> None:
    with path.open("wb") as stream:
        path.chmod(0o600)
        for chunk in chunks:
            stream.write(chunk)


async def read_state(folder: Path, engine: Engine, name: str, ids: tuple[int, ...]) -> StateRef:
    """Read the state of a turn.

    Raises:
        StoreError: It is missing, or another one than was written.
        PacketError: It cannot be read.
    """
    file = state_file(folder, name)
    if not file.is_file():
        raise StoreError(f"the state {file} is missing", kind="missing")
    content = await anyio.to_thread.run_sync(file.read_bytes)
    if blake3(content).hexdigest(length=20) != name:
        raise StoreError(f"the state {file} was changed", kind="broken")
    message, ref = await engine.admit(content)
    if message.context != ids:
        engine.release(ref)
        raise StoreError(f"the state {file} is of another context", kind="different")
    return ref
