"""Sessions on disk: whole or as they were, for one process at a time, and gone when deleted."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import environment

from unspoken.agents import Agent, Session, Workflow
from unspoken.agents.sessions import SessionStore
from unspoken.agents.sessions import store as stores
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError, StoreError


@pytest.fixture
def script() -> ScriptedModel:
    return ScriptedModel({"talker": "I see."})


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path)


def say(script: ScriptedModel, words: str, session: Session) -> None:
    talker = Agent("talker", script, prompt="{{ inputs.words }}", memory="session")
    Workflow("chat", [talker]).run(words=words, session=session)


def told(store: SessionStore, script: ScriptedModel, name: str = "anna", words: str = "hi") -> None:
    with Session(name=name, store=store) as session:
        say(script, words, session)


def test_a_session_is_for_its_owner_alone_and_deleted_whole(
    store: SessionStore, script: ScriptedModel
) -> None:
    told(store, script)
    told(store, script, "berta / 漢")
    assert [one.name for one in store.sessions()] == ["berta / 漢", "anna"]
    for path in (store.folder, *store.folder.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.suffix == ".lock", path
    assert store.bytes_of("anna") > 0
    assert store.delete("anna") and not store.delete("anna")
    left = [path.name for path in store.folder.rglob("*") if path.is_file()]
    assert len(left) == 3, left  # the other's file, packet and lock
    with pytest.raises(StoreError, match="there is no session 'anna'"):
        store.get("anna")


def test_old_states_go_with_the_run_that_replaces_them(
    store: SessionStore, script: ScriptedModel
) -> None:
    """So does what a process that died has left."""
    told(store, script)
    stray = store.folder_of("anna") / ".session.json.1-ab"
    stray.write_text("half")
    told(store, script, words="more")
    (talk,) = store.get("anna").conversations
    assert {path.name for path in store.folder_of("anna").iterdir()} == {
        "session.json",
        f"{talk.state}.packet",
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "name": "anna"}'])
def test_a_session_that_cannot_be_read_is_told_and_can_be_deleted(
    store: SessionStore, script: ScriptedModel, content: str
) -> None:
    told(store, script)
    (store.folder_of("anna") / "session.json").write_text(content)
    with pytest.raises(StoreError, match="cannot be read") as error:
        told(store, script)
    assert error.value.kind == "broken"
    assert store.delete("anna")
    told(store, script)


def test_a_session_that_cannot_be_read_hides_no_others(
    store: SessionStore, script: ScriptedModel
) -> None:
    """It is told beside them, and goes by its folder, since nobody may know its name."""
    told(store, script)
    told(store, script, "berta")
    folder = store.folder_of("anna")
    (folder / "session.json").write_text("{")
    assert [one.name for one in store.sessions()] == ["berta"]
    with pytest.raises(StoreError, match="there is no session 'carla'"):
        store.get("carla")
    (error,) = store.unreadable().values()
    assert f"sessions delete {folder.name}" in error.fix
    assert store.delete(folder.name) and not folder.exists()


def test_one_that_cannot_be_read_is_not_deleted_while_it_is_used(
    store: SessionStore, script: ScriptedModel
) -> None:
    """A run of another release may go on with it."""
    told(store, script)
    folder, lock = store.folder_of("anna"), store.lock("anna")
    (folder / "session.json").write_text("{")
    lock.acquire()
    try:
        with pytest.raises(StoreError, match="another run goes on"):
            store.delete(folder.name)
    finally:
        lock.release()
    assert folder.exists() and store.delete(folder.name)


def test_a_session_of_another_version_is_refused(
    store: SessionStore, script: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(store, script)
    monkeypatch.setattr(stores, "VERSION", 2)
    with pytest.raises(StoreError, match="is of version 1"):
        store.get("anna")


def test_a_disk_without_room_leaves_the_session(
    store: SessionStore, script: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says so, and the next one finds what was there."""
    told(store, script)
    before = store.get("anna")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with Session(name="anna", store=store) as session:
        with monkeypatch.context() as patch:
            patch.setattr(stores, "replace_file", full)
            with pytest.raises(StoreError, match="is full"):
                say(script, "more", session)
        assert store.get("anna") == before
        say(script, "again", session)
        (talk,) = session.conversations()
    assert [text for role, text in talk.words if role == "user"] == ["hi", "again"]


def test_one_run_at_a_time_goes_on_with_a_session(
    store: SessionStore, script: ScriptedModel
) -> None:
    """A second one is refused: in this process, in another, and where it is deleted."""
    refused: list[str] = []

    def answer(agent: str, turn: int, prompt: str) -> str:
        for attempt in (
            lambda: say(script, "too", session),
            lambda: told(store, script),
            lambda: store.delete("anna"),
            session.forget,
        ):
            with pytest.raises(StoreError, match="another run goes on with the session") as error:
                attempt()
            refused.append(error.value.kind)
        return "fine"

    with Session(name="anna", store=store) as session:
        say(script, "one", session)
        say(ScriptedModel(answer), "two", session)
        assert refused == ["locked"] * 4
        say(script, "three", session)
        assert len(session.conversations()[0].words) == 6


DYING = """
import os, sys
from unspoken.agents import Agent, Session, Workflow
from unspoken.agents.testing import ScriptedModel

def answer(agent, turn, prompt):
    if agent == "second":
        os._exit(9)
    return "half a run"

agents = [Agent(name, ScriptedModel(answer), prompt="go", memory="session")
          for name in ("talker", "second")]
with Session(name="anna", store=sys.argv[1]) as session:
    Workflow("chat", agents).connect("talker", "second").run(session=session)
"""


def test_a_process_that_dies_leaves_the_session_as_it_was(
    store: SessionStore, script: ScriptedModel
) -> None:
    """Not half of its run; the lock goes with the process."""
    told(store, script)
    before = store.get("anna")
    command = [sys.executable, "-c", DYING, str(store.folder.parent)]
    died = subprocess.run(command, env=environment(), check=False)
    assert died.returncode == 9 and store.get("anna") == before
    told(store, script, words="more")
    assert len(store.get("anna").conversations[0].words) == 4


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, 7])
def test_a_name_is_a_line_of_text(store: SessionStore, name: Any) -> None:
    with pytest.raises(InputError, match="cannot be the name of a session"):
        store.lock(name)


def test_forgotten_conversations_begin_anew(store: SessionStore, script: ScriptedModel) -> None:
    """In memory and on disk, also those that a session within another one has."""
    with Session(store=store) as users:
        for name in ("anna", "berta"):
            say(script, name, users.named(name))
        users.named("anna").forget()
        assert users.named("anna").conversations() == ()
        assert [one.name for one in store.sessions()] == ["berta"]
        say(script, "new", users.named("anna"))
    assert "berta" not in script.prompts["talker"][-1]
