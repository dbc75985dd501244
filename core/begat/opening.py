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
from begat.errors import FormatTooNew, StoreUnavailable
from begat.files import make_directory, replace_with, told_as
from begat.identity import new_uid
from begat.locks import FileLock, StoreLocks
from begat.objects import ObjectStore
from begat.store import Store

FORMAT = 1
FORMAT_FILE = "format.json"
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
        is_read_only = not os.access(path, os.W_OK)
        catalog_folder = path / str(facts["catalog"])
        opened = Catalog.open(catalog_folder / "catalog.sqlite", read_only=is_read_only)
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
            ObjectStore(path / str(facts["objects"])),
            StoreLocks(catalog_folder / "locks"),
            cache,
        )


def _create(
    path: Path, catalog: str | os.PathLike[str] | None, objects: str | os.PathLike[str] | None
) -> dict[str, Any]:
    if path.exists() and not path.is_dir():
        raise StoreUnavailable(f"{path} is a file, not a store; nothing was changed")
    if path.is_dir() and any(
        name.name not in ("locks", "catalog.sqlite") for name in path.iterdir()
    ):
        raise StoreUnavailable(
            f"{path} holds other files and is no begat store; nothing was changed. Give another folder"
        )
    make_directory(path)
    catalog_folder = path if catalog is None else Path(os.path.abspath(catalog))
    lock = FileLock(path / "locks" / "create.lock")
    if not lock.acquire("exclusive", deadline_s=time.monotonic() + CREATE_WAIT_S):
        raise StoreUnavailable(
            f"another process has been making the store {path} for long; try again"
        )
    try:
        found = _read_format(path)  # another process may have been faster
        if found is not None:
            return found
        facts: dict[str, Any] = {
            "format": FORMAT,
            "what": "a begat store; see https://pypi.org/project/begat",
            "uid": new_uid(),
            "catalog": "." if catalog is None else str(catalog_folder),
            "objects": "." if objects is None else str(Path(os.path.abspath(objects))),
        }
        make_directory(catalog_folder)
        ObjectStore(path / facts["objects"]).make_folders()
        Catalog.create(catalog_folder / "catalog.sqlite", facts["uid"]).close()
        # Last: a folder without it is no store yet, and is made again.
        replace_with(path / FORMAT_FILE, json.dumps(facts, indent=1).encode() + b"\n")
        return facts
    finally:
        lock.release()


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
