"""The default store and the active run, for code that names neither: `begat.start_run`, `begat.log_artifact`, ..."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from begat.active import RUN_ID_VARIABLE
from begat.active import active_run as active_run_of_process
from begat.artifact import Artifact
from begat.config import find_store
from begat.errors import RunNotFound, warn
from begat.listing import SymlinkPolicy
from begat.model import Expect, Json
from begat.opening import open_store
from begat.reference import Bump
from begat.run import Content, Run
from begat.store import Store
from begat.version import Version

if TYPE_CHECKING:
    from begat.ignore import Globs

_stores: dict[Path, Store] = {}
_lock = threading.Lock()


def default_store() -> Store:
    """The store that is meant when none is named (`begat doctor` tells which, and why), opened once in a process."""
    path = find_store().path
    with _lock:
        store = _stores.get(path)
        if store is None or store.is_closed:
            store = _stores[path] = open_store(path)
        return store


def _start_anew_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have been opening a store


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)


def store_meant_by(store: Store | str | os.PathLike[str] | None) -> Store:
    """The store itself, the one at a folder, or without either the default store; for begat's own parts."""
    if isinstance(store, Store):
        return store
    return default_store() if store is None else open_store(store)


def start_run(
    name: str | None = None,
    *,
    job: str | None = None,
    uses: Iterable[str | Version] = (),
    params: Mapping[str, Json] | None = None,
    tags: Iterable[str] = (),
    store: Store | None = None,
) -> Run:
    """Start a run in the default store (or in `store`); see `Store.start_run`."""
    return (store or default_store()).start_run(name, job=job, uses=uses, params=params, tags=tags)


def active_run() -> Run | None:
    """The run of the surrounding `with`, else the newest open run of this process, else the one it joins, else None."""
    run = active_run_of_process()
    if run is None and os.environ.get(RUN_ID_VARIABLE):
        try:
            # Its id in full: a variable that holds a word is no reason to join a run that is called so.
            store = default_store()
            return Run(store, store.catalog.runs.get(os.environ[RUN_ID_VARIABLE]))
        except RunNotFound:
            warn(
                f"{RUN_ID_VARIABLE} names a run that is not in this store; what happens here belongs to no run"
            )
            return None
    return run


def get_artifact(ref: str) -> Version:
    """The version that a reference means, in the default store; nothing is recorded."""
    return default_store().get_artifact(ref)


def use_artifact(ref: str | Version, *, role: str | None = None, refresh: bool = False) -> Version:
    """The version that a reference means, recorded as used by the active run; see `Run.use_artifact`.

    Without an active run it is read, and nothing is recorded.
    """
    run = active_run()
    if run is None:
        return ref if isinstance(ref, Version) else get_artifact(ref)
    return run.use_artifact(ref, role=role, refresh=refresh)


def log_artifact(
    artifact_or_name: Artifact | str,
    path: Content | None = None,
    *,
    type: str | None = None,
    version: str | None = None,
    bump: Bump | None = None,
    aliases: Iterable[str] = (),
    tags: Iterable[str] = (),
    metadata: Mapping[str, Json] | None = None,
    description: str | None = None,
    if_unchanged: Literal["reuse", "new"] = "reuse",
    expect: Expect | str = Expect.ANY,
    include: Globs | None = None,
    exclude: Globs | None = None,
    symlinks: SymlinkPolicy = "keep",
    portable: bool = False,
    stat_cache: bool = True,
) -> Version:
    """Store files as the next version, made by the active run if there is one; see `Run.log_artifact`."""
    run = active_run()
    logs = default_store() if run is None else run
    return logs.log_artifact(
        artifact_or_name,
        path,
        type=type,
        version=version,
        bump=bump,
        aliases=aliases,
        tags=tags,
        metadata=metadata,
        description=description,
        if_unchanged=if_unchanged,
        expect=expect,
        include=include,
        exclude=exclude,
        symlinks=symlinks,
        portable=portable,
        stat_cache=stat_cache,
    )
