"""Find, make and open the store at a folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from msgspec.structs import replace

from begat.cache import Cache
from begat.catalog import RESERVE_FILE, Catalog
from begat.config import cache_directory, cache_limit_bytes, find_store
from begat.errors import DestinationDiffers, StoreUnavailable
from begat.files import make_directory, remove, told_as
from begat.format import CATALOG_FILE, FORMAT_FILE, StoreFormat, read_format, write_format
from begat.identity import new_uid
from begat.locks import FileLock, StoreLocks
from begat.objects import ObjectStore
from begat.store import Store

CREATE_LOCK = "locks/create.lock"
CREATE_WAIT_S = 60.0
# What `files.NewFile` calls its files.
_UNNAMED = re.compile(r"[0-9a-f]{16}\.tmp")


def open_store(
    url: str | os.PathLike[str] | None = None,
    *,
    catalog: str | os.PathLike[str] | None = None,
    objects: str | os.PathLike[str] | None = None,
) -> Store:
    """The store at a folder, made if there is none; without `url` the default store (`begat doctor` tells which, why).

    `catalog` and `objects` are folders for a new store whose parts lie in two places (a catalog on the local disk,
    objects on a network file system); an existing store knows where its parts are.

    Raises `FormatTooNew`, `StoreUnavailable` (other files are in the folder; the catalog would lie on a network file
    system), `AccessDenied`, `ReadOnly`.
    """
    path = find_store(url).path
    with told_as(f"opening the store {path}"):
        store = read_format(path) or _create(path, catalog, objects)
        # All of it, or nothing: a catalog that can be written beside objects that cannot is of no use to a log.
        written = (path, store.catalog_folder, store.catalog_file, store.objects_folder)
        is_read_only = not all(os.access(each, os.W_OK) for each in written if each.exists())
        opened = Catalog.open(store.catalog_file, read_only=is_read_only)
        if opened.store_uid != store.uid:
            opened.close()
            raise StoreUnavailable(
                f"the catalog in {store.catalog_folder} belongs to another store than {path}; nothing was changed. "
                "Restore the right one (begat backup), or delete it and run begat rebuild"
            )
        return Store(
            path,
            opened,
            ObjectStore(store.objects_folder),
            StoreLocks(store.lock_folder),
            Cache(cache_directory(), limit_bytes=cache_limit_bytes()),
        )


def _create(
    path: Path, catalog: str | os.PathLike[str] | None, objects: str | os.PathLike[str] | None
) -> StoreFormat:
    if path.exists() and not path.is_dir():
        raise StoreUnavailable(f"{path} is a file, not a store; nothing was changed")
    _refuse_other_files(path)
    make_directory(path)
    lock = FileLock(path / CREATE_LOCK)
    if not lock.acquire("exclusive", deadline_s=time.monotonic() + CREATE_WAIT_S):
        raise StoreUnavailable(
            f"another process has been making the store {path} for long; try again"
        )
    try:
        found = read_format(path)  # another process may have been faster
        if found is not None:
            return found
        _refuse_lost_format(path)
        store = StoreFormat(
            new_uid(),
            path if catalog is None else Path(os.path.abspath(catalog)),
            path if objects is None else Path(os.path.abspath(objects)),
        )
        make_directory(store.catalog_folder)
        for folder in {path, store.catalog_folder}:
            _remove_leftovers(folder)
        # First: where a catalog must not lie, nothing else is made either.
        store = replace(store, uid=_make_catalog(store.catalog_file, store.uid))
        ObjectStore(store.objects_folder).make_folders()
        # Last: a folder without it is no store yet, and is made again.
        write_format(path, store)
        return store
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it made the store had not given a name yet."""
    for name in os.listdir(folder):
        if _UNNAMED.fullmatch(name):
            remove(folder / name)


def _make_catalog(path: Path, uid: str) -> str:
    """Make the catalog of a new store; the uid that it has, which is another one if it was there already."""
    try:
        with Catalog.create(path, uid) as made:
            made.keep_reserve()
        return uid
    except DestinationDiffers:
        # Left by a process that was killed while it made the store; nothing is in it but its uid.
        with Catalog.open(path) as found:
            if next(found.versions.all(), None) is not None or found.runs.list(limit=1):
                raise
            return found.store_uid


def _refuse_other_files(path: Path) -> None:
    if not path.is_dir():
        return
    names = {name.name for name in path.iterdir()} - {"locks"}
    # What a process that makes a store here right now, or was killed while it did, has made so far. It makes this lock
    # before all else, so nobody else's files are mistaken for a store's.
    if os.path.exists(path / CREATE_LOCK):
        names -= {"objects", "tmp", "damaged"}
        names = {name for name in names if not name.startswith((CATALOG_FILE, RESERVE_FILE))}
        names = {name for name in names if ".tmp" not in name}  # also SQLite's journal of one
    if names and not os.path.exists(path / FORMAT_FILE):
        raise StoreUnavailable(
            f"{path} holds other files ({min(names)!r}) and is no begat store; nothing was changed. Give another folder"
        )


def _refuse_lost_format(path: Path) -> None:
    objects = path / "objects"
    if objects.is_dir() and any(objects.iterdir()):
        raise StoreUnavailable(
            f"{path / FORMAT_FILE} is missing, but stored objects are there; nothing was changed. "
            "Restore that file from a backup of the store"
        )
