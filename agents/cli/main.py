"""The ``unspoken`` command: its groups, and what becomes of errors.

Commands import what they need when they run, so that ``unspoken --help`` is quick.
"""

import errno
import sys
import traceback
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand

from unspoken.agents.bench import BENCHES
from unspoken.agents.cli import bench, bridge, models, plan, profile, profiles, run
from unspoken.agents.cli import bridge_fit as fitting
from unspoken.agents.cli.console import print_error, shown, stderr
from unspoken.channels.errors import UnspokenError

__all__ = ["app", "main"]

INTERRUPTED = 130
"""What shells give for a program that Ctrl-C ended: 128 and the signal's number."""


class _Command(TyperCommand):
    """A command whose errors are one screen on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
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


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"unspoken {version('unspoken')}")
        except PackageNotFoundError:
            typer.echo("unspoken, from a source tree that is not installed")
        raise typer.Exit


_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="unspoken", no_args_is_help=True, add_completion=False, context_settings=_HELP
)
_models = typer.Typer(
    name="models", no_args_is_help=True, help="Models: list, show and prepare them."
)
_profiles = typer.Typer(
    name="profiles",
    no_args_is_help=True,
    help="Profiles of fine-tunes: list, show and remove them.",
)
_bridges = typer.Typer(
    name="bridge",
    no_args_is_help=True,
    help="Bridges that carry a cache from one model to another.",
)


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


app.command("run", cls=_Command)(run.run)
app.command("plan", cls=_Command)(plan.plan)
app.command("validate", cls=_Command)(plan.validate)
app.command("graph", cls=_Command)(plan.graph)
app.command("schema", cls=_Command)(plan.schema)
app.command("profile", cls=_Command)(profile.profile)
app.command("bench", cls=_Bench)(bench.bench)
app.add_typer(_models)
_models.command("list", cls=_Command)(models.list_)
_models.command("show", cls=_Command)(models.show)
_models.command("prepare", cls=_Command)(models.prepare)
app.add_typer(_profiles)
_profiles.command("list", cls=_Command)(profiles.list_)
_profiles.command("show", cls=_Command)(profiles.show)
_profiles.command("remove", cls=_Command)(profiles.remove)
app.add_typer(_bridges)
_bridges.command("fit", cls=_Command)(fitting.fit)
_bridges.command("audit", cls=_Command)(fitting.audit)
_bridges.command("list", cls=_Command)(bridge.list_)
_bridges.command("show", cls=_Command)(bridge.show)
_bridges.command("remove", cls=_Command)(bridge.remove)
_bridges.command("push", cls=_Command)(bridge.push)
_bridges.command("pull", cls=_Command)(bridge.pull)


def main() -> None:
    """The console script."""
    app(prog_name="unspoken")


if __name__ == "__main__":
    main()
