"""The command `begat`: the terminal's door to a store.

Each command opens the store, calls what Python users call, and prints. Exit codes: 0 all is well, 1 something was found
or failed, 2 the command was typed wrong, 130 after Ctrl-C; `begat run` exits as its program does.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

import begat
from begat.cli import ancestry, care, completion, doctor, labels, reading, running, runs, storing
from begat.cli.opened import Settings, settings_of
from begat.cli.options import flag
from begat.cli.output import BROKEN_PIPE, in_flags, note, say
from begat.errors import BegatError, BegatWarning

INTERRUPTED = 130
MISUSED = 2

app = typer.Typer(
    help="Know what begat what: immutable versions of data, models and predictions, and the runs between them.",
    epilog="'begat COMMAND --help' explains a command and shows examples.",
    no_args_is_help=True,
    add_completion=False,  # ours name the shell, and give bash a script that knows what a reference is
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Store and get": (storing.init, storing.log, storing.get, labels.rm),
    "Look": (reading.ls, reading.show, reading.history, reading.diff, runs.runs),
    "Runs and lineage": (running.run, ancestry.lineage, ancestry.stale, ancestry.why),
    "Labels": (labels.alias, labels.tag),
    "Care": (care.verify, care.gc, care.backup, care.rebuild, care.sync, doctor.doctor),
}
_OF_CACHE: tuple[Callable[..., None], ...] = (care.cache_ls, care.cache_rm, care.cache_prune)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. `argv` are the arguments after `begat`, by default those of this process."""
    settings = Settings(is_debug=os.environ.get("BEGAT_DEBUG", "") not in ("", "0"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", BegatWarning)
        warnings.showwarning = _show_warning
        code = _outcome(list(sys.argv[1:] if argv is None else argv), settings)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # closed, so that Python does not try again at its exit
            sys.stdout.close()
        code = BROKEN_PIPE
    if argv is None:
        # The process ends now: without this, Python would first look for garbage in all that was ever imported.
        gc.freeze()
    return code


def _outcome(arguments: list[str], settings: Settings) -> int:
    completion.get_ready()
    try:
        result = get_command(part_of_app(arguments))(
            arguments, prog_name="begat", obj=settings, standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except SystemExit as ending:  # typer's completion
        return ending.code if isinstance(ending.code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except typer.TyperException as error:
        return _misused(error)
    except BegatError as error:
        _show_traceback(settings)
        note(f"begat: {in_flags(error.message)}")
        return 1
    except OSError as error:
        _show_traceback(settings)
        note(f"begat: the system refused: {error}. Nothing that was stored before is lost")
        return 1
    except Exception as error:  # noqa: BLE001 - the door: whatever went wrong, the user gets one line
        _show_traceback(settings)
        note(
            f"begat: unexpected {type(error).__name__}: {error}. This is a bug of begat; "
            "'begat --debug ...' shows where"
        )
        return 1


def part_of_app(arguments: list[str]) -> typer.Typer:
    """The app with only the command that the first argument names, else all of it.

    Typer looks at every parameter of every command that it is given, which takes longer than most commands do.
    """
    commands = [each for each in app.registered_commands if each.name in arguments[:1]]
    groups = [each for each in app.registered_groups if each.name in arguments[:1]]
    if not commands and not groups:
        return app
    part = copy.copy(app)
    part.registered_commands, part.registered_groups = commands, groups
    return part


def _misused(error: typer.TyperException) -> int:
    message = error.format_message().replace("Value error, ", "")  # what pydantic puts before it
    context: typer.Context | None = getattr(error, "ctx", None)
    if message:  # else the help was printed instead
        command = context.command_path if context else "begat"
        note(f"{command}: {message} ({command} --help)")
    return error.exit_code


def _show_warning(
    message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    note(f"begat: {in_flags(str(message))}")


def _show_traceback(settings: Settings) -> None:
    if settings.is_debug:
        traceback.print_exc()


# --- begat itself ---


def _show_version(wanted: bool) -> None:
    if wanted:
        say(begat.__version__)
        raise typer.Exit


@app.callback()
def _begat(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="The store (default: BEGAT_STORE, the nearest .begat, or your data folder).",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[bool, flag("--debug", help="Show tracebacks (or set BEGAT_DEBUG=1).")] = False,
    version: Annotated[
        bool,
        flag("--version", help="Show begat's version.", callback=_show_version, is_eager=True),
    ] = False,
    show_completion: Annotated[
        completion.Shell | None,
        typer.Option(
            help="Print what completes commands, names and references in this shell.",
            callback=completion.show_script,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
    install_completion: Annotated[
        completion.Shell | None,
        typer.Option(
            help="Let this shell complete from its next start on.",
            callback=completion.install_script,
            is_eager=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    settings = settings_of(context)
    settings.store = store
    settings.is_debug = settings.is_debug or debug


def _help_of(command: Callable[..., None]) -> str:
    """The docstring with its paragraphs in one line each, for the terminal to wrap; examples stay as they are."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    joined = [
        text if text.lstrip().startswith("Examples:") else " ".join(text.split())
        for text in paragraphs
    ]
    return "\n\n".join(joined)


def _register() -> None:
    for panel, commands in _COMMANDS.items():
        for command in commands:
            options = {"allow_interspersed_args": False} if command is running.run else {}
            app.command(
                command.__name__,
                help=_help_of(command),
                rich_help_panel=panel,
                context_settings=options,
            )(command)
    for command in _OF_CACHE:
        name = command.__name__.removeprefix("cache_")
        care.cache_commands.command(name, help=_help_of(command))(command)
    app.add_typer(care.cache_commands, name="cache", rich_help_panel="Care")


_register()
