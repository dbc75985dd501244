"""Which store a command works on, and what was said before the command's name."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from begat.cli.output import note
from begat.errors import BadInput, RunNotFound, StoreUnavailable

if TYPE_CHECKING:
    from begat.config import StoreLocation
    from begat.model import Expect
    from begat.run import Run
    from begat.store import Store


@dataclass(slots=True)
class Settings:
    """The options of `begat` itself."""

    store: str | None = None
    is_debug: bool = False


def settings_of(context: typer.Context) -> Settings:
    """The options of `begat` itself, in any of its commands."""
    return context.ensure_object(Settings)


def location_of(context: typer.Context) -> StoreLocation:
    """Where the store is that is meant, and why that one; it may not exist."""
    from begat.config import find_store

    return find_store(settings_of(context).store)


@contextlib.contextmanager
def opened(context: typer.Context, *, make: bool = False) -> Generator[Store]:
    """The store that is meant, until the block ends; made if there is none only where the command stores something.

    A command that reads would otherwise answer a mistyped `--store` with an empty store.
    """
    from begat.files import told_as
    from begat.opening import FORMAT_FILE, open_store

    location = location_of(context)
    with told_as(f"opening the store {location.path}"):
        is_there = make or (location.path / FORMAT_FILE).is_file()
    if not is_there:
        inside = location.path / ".begat"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        raise StoreUnavailable(
            f"there is no store at {location.path} ({location.why}){hint or '; begat init makes one here'}"
        )
    with open_store(location.path) as store:
        yield store


def surrounding_run(store: Store) -> Run | None:
    """The run that `begat run` or a training script started around this command, while it goes on."""
    import os

    from begat.active import RUN_ID_VARIABLE

    id = os.environ.get(RUN_ID_VARIABLE)
    if not id:
        return None
    from begat.run import Run

    try:
        run = Run(store, store.catalog.runs.get(id))
    except RunNotFound:  # a run of another store
        note(
            f"begat: {RUN_ID_VARIABLE} names a run that is not in this store; this belongs to no run"
        )
        return None
    if run.record.status != "running":
        note(
            f"begat: the run {run.name} of {RUN_ID_VARIABLE} is {run.record.status}; this belongs to no run"
        )
        return None
    return run


def expected(store: Store, artifact: str, text: str | None) -> Expect | str:
    """What `--expect` says as the store's compare-and-set takes it: anything, absent, or a number such as `v3`."""
    from begat.model import Expect

    if text is None:
        return Expect.ANY
    if text == Expect.ABSENT.value:
        return Expect.ABSENT
    if ":" not in text and "@" not in text:
        return text
    version = store.get_artifact(text)
    if version.name != artifact:
        raise BadInput(
            f"{text!r} is a version of {version.name}, not of {artifact}; nothing was changed"
        )
    return f"v{version.number}"
