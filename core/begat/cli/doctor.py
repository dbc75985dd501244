"""`begat doctor`: which store and cache are meant and why, what begat runs on, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import begat
from begat.cli.opened import location_of
from begat.cli.options import JsonFlag
from begat.cli.output import note, say, say_json, say_table
from begat.errors import BegatError
from begat.wording import counted, size_text

if TYPE_CHECKING:
    from begat.cli.access import Refusal
    from begat.config import StoreLocation
    from begat.store import Store

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
LITTLE_SPACE_BYTES = 10**9
OPTIONAL = ("lightning", "pytorch-lightning", "torch", "scikit-learn", "skops", "pyarrow")
VARIABLES = (
    "BEGAT_STORE",
    "BEGAT_CACHE",
    "BEGAT_CACHE_SIZE",
    "BEGAT_COMPRESSION",
    "BEGAT_RUN_ID",
    "BEGAT_DEBUG",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; with advice if it is a problem."""

    name: str
    value: str
    advice: str = ""

    @property
    def is_problem(self) -> bool:
        """True if something should be done about it."""
        return bool(self.advice)


def doctor(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Say which store is used and why, and what is wrong.

    The exit code is 1 if something should be done; each such thing comes with advice.

    Examples:
      begat doctor
      begat --store /data/begat doctor --json
    """
    findings = [*_software(), *_variables(), *_store(context), *_cache()]
    problems = [finding for finding in findings if finding.is_problem]
    if as_json:
        say_json([{**asdict(one), "is_problem": one.is_problem} for one in findings])
    else:
        say_table(
            ("", "LOOKED AT", "FOUND"),
            [("!!" if one.is_problem else "ok", one.name, one.value) for one in findings],
        )
        for problem in problems:
            say(f"!! {problem.name}: {problem.advice}")
        note(
            "begat: no problem found"
            if not problems
            else f"begat: {counted(len(problems), 'problem')}"
        )
    if problems:
        raise typer.Exit(1)


# --- what begat runs on ---


def _software() -> Iterator[Finding]:
    from begat.catalog.opening import sqlite_version

    yield Finding("begat", f"{begat.__version__} in {Path(begat.__file__).parent}")
    yield Finding(
        "Python",
        f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
    )
    yield Finding("system", platform.platform())
    found = sqlite_version()
    is_old = tuple(int(part) for part in found.split(".")) < OLDEST_SQLITE
    oldest = ".".join(map(str, OLDEST_SQLITE))
    yield Finding("SQLite", found, f"begat needs {oldest} or later" if is_old else "")
    yield _splitter()
    versions = {name: _version_of(name) for name in OPTIONAL}
    here = [f"{name} {version}" for name, version in versions.items() if version]
    yield Finding("optional packages", ", ".join(here) or "none")
    git = shutil.which("git")
    yield Finding("git", git or "not found: runs do not record which commit they ran from")


def _splitter() -> Finding:
    from begat.split import splits_by_content

    if splits_by_content():
        return Finding("pyfastcdc", f"{_version_of('pyfastcdc')}, compiled")
    return Finding(
        "pyfastcdc",
        "not compiled",
        "large files are not split by content, so their versions share fewer bytes; "
        "pip install --force-reinstall --only-binary :all: pyfastcdc",
    )


def _version_of(package: str) -> str:
    from importlib import metadata  # 15 ms, needed here only

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _variables() -> Iterator[Finding]:
    from begat.config import compression, without_secrets

    said = [
        f"{name}={without_secrets(os.environ[name])}" for name in VARIABLES if os.environ.get(name)
    ]
    yield Finding("environment", ", ".join(said) or "no BEGAT_ variable is set")
    try:
        compression()
    except BegatError as error:
        yield Finding("compression", "not usable", error.message)


# --- the store ---


def _store(context: typer.Context) -> Iterator[Finding]:
    from begat.cli.access import read_refusal
    from begat.opening import FORMAT_FILE, open_store

    try:
        location = location_of(context)
    except BegatError as error:
        yield Finding("store", "not usable", error.message)
        return
    yield Finding("store", f"{location.path}, because of: {location.why}")
    closed = read_refusal(location.path)
    if closed:
        yield _refused(closed, location.path, "what is in it is not even seen")
        return
    if not (location.path / FORMAT_FILE).is_file():
        yield from _missing_store(location)
        return
    yield from _permissions(location.path)
    try:
        with open_store(location.path) as store:
            yield from _opened_store(store)
    except BegatError as error:
        yield Finding("opening it", "failed", error.message)


def _permissions(path: Path) -> Iterator[Finding]:
    from begat.cli.access import read_refusal, store_refusals
    from begat.format import FORMAT_FILE, read_format

    unread = read_refusal(path / FORMAT_FILE)
    try:
        store = None if unread else read_format(path)
    except (BegatError, OSError):  # told when it is opened
        return
    if unread or store is None:
        if unread:
            yield _refused(unread, path, "the store cannot be opened without it")
        return
    refusals, is_read_only = store_refusals(path, store)
    for refusal in refusals:
        is_read = refusal.what == "read"
        yield _refused(
            refusal, path, "what is in it cannot be read back" if is_read else "logging may fail"
        )
    if not refusals:
        may = "read, and not write," if is_read_only else "read and write"
        yield Finding("permissions", f"this user may {may} every part of the store")


def _refused(refusal: Refusal, root: Path, consequence: str) -> Finding:
    path = refusal.path
    name = path.relative_to(root) if path.is_relative_to(root) and path != root else path
    # Capital X: what is a folder may be entered too.
    mend = f"chmod u+r{'' if refusal.what == 'read' else 'w'}X {shlex.quote(str(path))}"
    return Finding(
        f"{name}",
        refusal.told,
        f"{consequence}; let its owner say {mend}, or give it to this user",
    )


def _missing_store(location: StoreLocation) -> Iterator[Finding]:
    if location.path.is_dir() and any(location.path.iterdir()):
        yield Finding(
            "opening it", "not a store", "other files are in that folder; name another one"
        )
        return
    yield Finding("opening it", "not there yet; it is made when something is logged")
    above = next(folder for folder in location.path.parents if folder.exists())
    yield _writable("folder above it", above)
    yield from _disk("its disk", above, has_catalog=True)


def _opened_store(store: Store) -> Iterator[Finding]:
    from begat.catalog import RESERVE_FILE

    catalog, objects = store.catalog, store.objects
    artifacts = store.artifacts()
    versions = sum(record.version_count for record in artifacts)
    running = [run.status for run in store.runs(status="running")]
    yield Finding(
        "content",
        f"{counted(len(artifacts), 'artifact')}, {counted(versions, 'version')}, uid {store.uid}",
    )
    if store.is_read_only:
        yield Finding("writable", "no: it can be read, and nothing can be logged from here")
    else:
        yield Finding("writable", f"yes, {store.path}")
    yield from _disk("catalog", catalog.path.parent, has_catalog=True)
    yield from _disk("objects", objects.folder, has_catalog=False)
    reserve = catalog.path.with_name(RESERVE_FILE)
    has_reserve = reserve.is_file()
    yield Finding(
        "kept for gc on a full disk",
        size_text(reserve.stat().st_size)
        if has_reserve
        else "none; the next 'begat gc --delete' makes it",
    )
    yield Finding(
        "open runs",
        f"{running.count('running'):,} running, {running.count('lost'):,} lost (their process is gone)",
    )
    yield from _leftovers(store)
    damaged = sum(record.state == "damaged" for record in catalog.bytes.all_objects())
    yield Finding(
        "damaged objects",
        f"{damaged:,} known",
        "'begat verify' names whose they are; log the same files again to mend them. If it names none, they are "
        "mended, and go with 'begat gc --delete' when no version holds them any more"
        if damaged
        else "",
    )


def _leftovers(store: Store) -> Iterator[Finding]:
    from begat.recording.staging import STAGING, Journal

    count = 0
    staging = store.path / STAGING
    # Looking takes the lock of each journal, for a moment: only those whose process died can be had.
    for folder in sorted(staging.glob("[!.]*")) if not store.is_read_only else ():
        journal = Journal.take_over(folder)
        if journal is not None:
            count += len(journal.pending)
            journal.close()
    yield Finding(
        "journal",
        f"{counted(count, 'step')} left by processes that were killed",
        "'begat sync' carries them out" if count else "",
    )


def _disk(name: str, folder: Path, *, has_catalog: bool) -> Iterator[Finding]:
    from begat.catalog.opening import NETWORK_FILE_SYSTEMS, file_system_of

    if not folder.exists():
        advice = "mount or restore it; nothing can be read back without it"
        yield Finding(name, f"{folder} is not there", advice)
        return
    kind = file_system_of(folder)
    is_remote = has_catalog and kind is not None and kind.lower() in NETWORK_FILE_SYSTEMS
    advice = "a catalog must lie on a local disk: SQLite can lose commits here" if is_remote else ""
    yield Finding(name, f"{folder} on {kind or 'an unknown file system'}", advice)
    free_bytes = shutil.disk_usage(folder).free
    is_little = free_bytes < LITTLE_SPACE_BYTES
    yield Finding(
        f"space for {name}",
        f"{size_text(free_bytes)} free",
        "nearly full: 'begat gc' shows what could go" if is_little else "",
    )


def _writable(name: str, folder: Path) -> Finding:
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, f"yes, {folder}")
    return Finding(name, f"no, {folder}", "this user may not write there; choose another --store")


# --- the cache ---


def _cache() -> Iterator[Finding]:
    from begat.cache import Cache
    from begat.cli.access import cache_refusals
    from begat.config import cache_directory, cache_limit_bytes
    from begat.statcache import kept_rows

    chosen = "BEGAT_CACHE" if os.environ.get("BEGAT_CACHE") else "the user's cache folder"
    try:
        folder, limit_bytes = cache_directory(), cache_limit_bytes()
    except BegatError as error:
        yield Finding("cache", "not usable", error.message)
        return
    yield Finding("cache", f"{folder}, because of: {chosen}")
    if folder.exists() and not folder.is_dir():
        advice = "remove that file, or set BEGAT_CACHE to a folder; Version.path needs one"
        yield Finding("cache is a folder", f"no, {folder} is a file", advice)
        return
    refusals = cache_refusals(folder)
    for refusal in refusals:
        yield Finding(
            "cache is writable",
            f"no, {refusal.path} {refusal.told}",
            "Version.path works in a folder that this user may write: set BEGAT_CACHE to one; "
            "the store itself and 'begat get' do without",
        )
    if refusals:
        return
    yield Finding("cache is writable", f"yes, {folder}")
    folders = Cache(folder).list()
    size = size_text(sum(one.size_bytes for one in folders))
    yield Finding(
        "cached", f"{counted(len(folders), 'folder')}, {size} of at most {size_text(limit_bytes)}"
    )
    rows = kept_rows(folder)
    size = size_text(sum(one.size_bytes for one in rows))
    yield Finding("stat cache", f"{counted(len(rows), 'logged folder')}, {size}")
