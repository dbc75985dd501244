"""Find, make and open the store at a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, cast

from begat.cache import Cache
from begat.catalog import Catalog
from begat.config import cache_directory, cache_limit_bytes, find_store
from begat.errors import DestinationDiffers, FormatTooNew, StoreUnavailable
from begat.files import make_directory, replace_with, told_as
from begat.identity import new_uid
from begat.locks import FileLock, StoreLocks
from begat.objects import ObjectStore
from begat.store import Store

FORMAT = 1
FORMAT_FILE = "format.json"
CATALOG_FILE = "catalog.sqlite"
CREATE_LOCK = "locks/create.lock"
CREATE_WAIT_S = 60.0


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
        facts = _read_format(path)
        if facts is None:
            facts = _create(path, catalog, objects)
        catalog_folder = path / str(facts["catalog"])
        catalog_file = catalog_folder / CATALOG_FILE
        objects_folder = path / str(facts["objects"])
        # All of it, or nothing: a catalog that can be written beside objects that cannot is of no use to a log.
        written = (path, catalog_folder, catalog_file, objects_folder)
        is_read_only = not all(os.access(each, os.W_OK) for each in written if each.exists())
        opened = Catalog.open(catalog_file, read_only=is_read_only)
        if opened.store_uid != facts["uid"]:
            opened.close()
            raise StoreUnavailable(
                f"the catalog in {catalog_folder} belongs to another store than {path}; nothing was changed. "
                "Restore the right one (begat backup), or delete it and run begat rebuild"
            )
        cache = Cache(cache_directory(), limit_bytes=cache_limit_bytes())
        return Store(
            path,
            opened,
            ObjectStore(objects_folder),
            StoreLocks(catalog_folder / "locks"),
            cache,
        )


def _create(
    path: Path, catalog: str | os.PathLike[str] | None, objects: str | os.PathLike[str] | None
) -> dict[str, Any]:
    if path.exists() and not path.is_dir():
        raise StoreUnavailable(f"{path} is a file, not a store; nothing was changed")
    _refuse_other_files(path)
    make_directory(path)
    catalog_folder = path if catalog is None else Path(os.path.abspath(catalog))
    lock = FileLock(path / CREATE_LOCK)
    if not lock.acquire("exclusive", deadline_s=time.monotonic() + CREATE_WAIT_S):
        raise StoreUnavailable(
            f"another process has been making the store {path} for long; try again"
        )
    try:
        found = _read_format(path)  # another process may have been faster
        if found is not None:
            return found
        _refuse_lost_format(path)
        facts: dict[str, Any] = {
            "format": FORMAT,
            "what": "a begat store; see https://pypi.org/project/begat",
            "uid": new_uid(),
            "catalog": "." if catalog is None else str(catalog_folder),
            "objects": "." if objects is None else str(Path(os.path.abspath(objects))),
        }
        make_directory(catalog_folder)
        # First: where a catalog must not lie, nothing else is made either.
        facts["uid"] = _make_catalog(catalog_folder / CATALOG_FILE, facts["uid"])
        ObjectStore(path / facts["objects"]).make_folders()
        # Last: a folder without it is no store yet, and is made again.
        replace_with(path / FORMAT_FILE, json.dumps(facts, indent=1).encode() + b"\n")
        return facts
    finally:
        lock.release()


def _make_catalog(path: Path, uid: str) -> str:
    """Make the catalog of a new store; the uid that it has, which is another one if it was there already."""
    try:
        Catalog.create(path, uid).close()
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
        names = {name for name in names if not name.startswith(CATALOG_FILE)}
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


def _read_format(path: Path) -> dict[str, Any] | None:
    """What `format.json` says, or None where there is no store."""
    try:
        found: object = json.loads((path / FORMAT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreUnavailable(
            f"{path / FORMAT_FILE} cannot be read as JSON; nothing was changed. Restore it from a backup"
        ) from error
    facts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    version = facts.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FormatTooNew(
            f"the store {path} has format {version}, this begat knows {FORMAT}; nothing was changed. Upgrade begat"
        )
    if version != FORMAT or not all(
        isinstance(facts.get(key), str) for key in ("uid", "catalog", "objects")
    ):
        raise StoreUnavailable(f"{path / FORMAT_FILE} is not of a begat store; nothing was changed")
    return facts
