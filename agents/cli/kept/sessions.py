"""``unspoken sessions``: conversations that go on over many runs."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.agents.cli.console import print_facts, print_json, print_table, shown, stderr, stdout
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import JsonOption, StoreOption
from unspoken.channels.sizes import shown_bytes

if TYPE_CHECKING:
    from unspoken.agents.sessions import SessionStore, StoredSession

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The session's name.")]


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the sessions in the store, the one used last first."""
    sessions = _store(store)
    lines = [_line(sessions, one) for one in sessions.sessions()]
    for error in sessions.unreadable().values():
        stderr().print(shown(str(error)))
    if as_json:
        print_json(lines)
        return
    if not lines:
        none = f"no sessions in {sessions.folder}; unspoken run FILE --session NAME begins one"
        stdout().print(shown(none))
        return
    columns = ("name", "agents", "tokens", "size", "updated")
    for line in lines:
        line["size"] = shown_bytes(line["bytes"])
    rows = [[str(line[column]) for column in columns] for line in lines]
    print_table(stdout(), "Sessions", columns, rows, (0, 1, 2, 3, 4))


def show(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show a session: what was said to each of its agents, and what they said."""
    sessions = _store(store)
    session = sessions.get(name)
    line = _line(sessions, session)
    said = [
        {"workflow": one.workflow, "agent": one.agent, "role": role, "text": text}
        for one in session.conversations
        for role, text in one.words
    ]
    if as_json:
        print_json({**line, "words": said})
        return
    console = stdout()
    print_facts(console, [(fact, str(line[fact])) for fact in ("name", "updated", "tokens")])
    for one in session.conversations:
        console.print(shown(f"\n{one.agent}, of {one.workflow}:"))
        for role, text in one.words:
            console.print(shown(f"  {role}: {text}"))


def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Delete a session and all that is kept of it; one that cannot be read, by its folder too."""
    sessions = _store(store)
    if not sessions.folder_of(name).exists() and name not in sessions.unreadable():
        sessions.get(name)
    if not yes:
        typer.confirm(f"Delete the session {name!r}?", abort=True, err=True)
    sessions.delete(name)
    echo(name)


def _store(folder: Path | None) -> "SessionStore":
    from unspoken.agents.sessions import SessionStore

    return SessionStore(folder)


def _line(store: "SessionStore", session: "StoredSession") -> dict[str, Any]:
    """A session in JSON, and in a line for people."""
    return {
        "name": session.name,
        "agents": ", ".join(one.agent for one in session.conversations),
        "tokens": sum(len(one.context.ids) for one in session.conversations),
        "bytes": store.bytes_of(session.name),
        "updated": datetime.fromtimestamp(session.updated).isoformat(" ", "seconds"),
    }
