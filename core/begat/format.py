"""What `format.json` in a store's folder says: the format's version, the store's uid, where its parts lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec

from begat.errors import FormatTooNew, StoreUnavailable
from begat.files import replace_with

FORMAT = 1
FORMAT_FILE = "format.json"
CATALOG_FILE = "catalog.sqlite"


class StoreFormat(msgspec.Struct, frozen=True):
    """A store's uid, and the folders (absolute) of its catalog and of its objects."""

    uid: str
    catalog_folder: Path
    objects_folder: Path

    @property
    def catalog_file(self) -> Path:
        """The catalog's database."""
        return self.catalog_folder / CATALOG_FILE

    @property
    def lock_folder(self) -> Path:
        """Beside the catalog: locks do not work on every network file system."""
        return self.catalog_folder / "locks"


def read_format(path: Path) -> StoreFormat | None:
    """What the store at a folder says of itself, or None where there is no store.

    Raises `FormatTooNew`, and `StoreUnavailable` for a file that is damaged or not begat's.
    """
    try:
        found: object = json.loads((path / FORMAT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise StoreUnavailable(
            f"{path / FORMAT_FILE} cannot be read as JSON; nothing was changed. Restore it from a backup"
        ) from error
    facts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    version = facts.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FormatTooNew(
            f"the store {path} has format {version}, this begat knows {FORMAT}; nothing was changed. Upgrade begat"
        )
    uid, catalog, objects = (facts.get(key) for key in ("uid", "catalog", "objects"))
    if version != FORMAT or not (
        isinstance(uid, str) and isinstance(catalog, str) and isinstance(objects, str)
    ):
        raise StoreUnavailable(f"{path / FORMAT_FILE} is not of a begat store; nothing was changed")
    return StoreFormat(uid, path / catalog, path / objects)


def write_format(path: Path, store: StoreFormat) -> None:
    """Say what is at a folder: from now on it is a store. Parts inside the folder are named relative to it."""
    facts = {
        "format": FORMAT,
        "what": "a begat store; see https://pypi.org/project/begat",
        "uid": store.uid,
        "catalog": "." if store.catalog_folder == path else str(store.catalog_folder),
        "objects": "." if store.objects_folder == path else str(store.objects_folder),
    }
    replace_with(path / FORMAT_FILE, json.dumps(facts, indent=1).encode() + b"\n")
