"""The ``unspoken`` command: its groups, and what becomes of errors.

Commands import what they need when they run, so that ``unspoken --help`` is quick.
"""

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from unspoken.agents.bench import BENCHES
from unspoken.agents.cli import bench, bridge, evaluation, init, models, plan, profile, run
from unspoken.agents.cli import bridge_fit as fitting
from unspoken.agents.cli import bridge_plan as planning
from unspoken.agents.cli.console import print_error, shown, stderr
from unspoken.agents.cli.kept import runs, sessions
from unspoken.agents.cli.results import results_alone
from unspoken.channels.errors import UnspokenError

LOUD = ("torchao", "torch.utils._pytree")
"""Loggers that warn, when transformers imports torchao, of what no command uses."""

INTERRUPTED = 130
"""What shells give for a program that Ctrl-C ended: 128 and the signal's number."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Command(TyperCommand):
    """A command whose errors are one screen on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with results_alone():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            stderr().print("interrupted", style="bold")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output has gone: click ends quietly
            raise typer.Exit(_explain(error, debug=ctx.find_root().params.get("debug"))) from error


def _explain(error: Exception, *, debug: bool) -> int:
    """Print an error, and give the exit code."""
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    if isinstance(error, UnspokenError):
        print_error(error)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = f" ({error.filename})" if error.filename else ""
        print_error(
            UnspokenError(
                f"what this command writes has no room{place}: {error.strerror}",
                expected="a disk with room, for the output and for the user's cache",
                fix="free some space, or write elsewhere ($UNSPOKEN_CACHE moves the cache)",
            )
        )
        return UnspokenError.exit_code
    name, reason = type(error).__name__, str(error).strip().partition("\n")[0][:500]
    console = stderr()
    text = shown(f"unexpected {name}: {reason}" if reason else f"unexpected {name}")
    console.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
    if not debug:
        console.print(
            "fix: this is a fault of unspoken; `unspoken --debug …` shows where it happened"
        )
    return 1


class _Bench(_Command):
    """A command whose help ends with the benchmarks there are."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.epilog = "\n\n".join(f"{name}: {what}" for name, what in BENCHES.items())
        super().format_help(ctx, formatter)


class _Profiles(TyperGroup):
    """The commands of ``unspoken profile``; two models in place of one are told which they want."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if len(args) > 1 and self.get_command(ctx, args[0]) is None:
            raise typer.Exit(_explain(profile.no_command(args), debug=False))
        return super().resolve_command(ctx, args)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"unspoken {version('unspoken')}")
        except PackageNotFoundError:
            typer.echo("unspoken, from a source tree that is not installed")
        raise typer.Exit


app = typer.Typer(
    name="unspoken", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)


def _group(name: str, what: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    group = typer.Typer(name=name, cls=cls, no_args_is_help=True, help=what)
    app.add_typer(group)
    return group


def _add(group: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands under the names of their functions."""
    for command in commands:
        group.command(command.__name__.rstrip("_"), cls=_Command)(command)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="UNSPOKEN_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run workflows of local models whose agents hand over KV caches instead of words."""


_add(app, init.init, run.run, plan.plan, plan.validate, plan.graph, plan.schema)
app.command("eval", cls=_Command)(evaluation.eval_)
app.command("bench", cls=_Bench)(bench.bench)
_runs = _group("runs", "Runs that are kept: list, show, resume, answer, cancel, clean.")
_add(_runs, runs.list_, runs.show, runs.resume, runs.answer, runs.cancel, runs.clean)
_sessions = _group("sessions", "Conversations over many runs: list, show and delete them.")
_add(_sessions, sessions.list_, sessions.show, sessions.delete)
_models = _group("models", "Models: list, show and prepare them.")
_add(_models, models.list_, models.show, models.prepare)
_profiles = _group("profile", "Profiles of fine-tunes: which layers to recompute.", _Profiles)
_add(_profiles, profile.fit, profile.list_, profile.show, profile.remove)
_bridges = _group("bridge", "Bridges that carry a cache from one model to another.")
_add(_bridges, planning.plan, fitting.fit, fitting.audit, bridge.list_, bridge.show, bridge.remove)
_add(_bridges, bridge.push, bridge.pull)


def main() -> None:
    """The console script."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    app(prog_name="unspoken")


if __name__ == "__main__":
    main()
