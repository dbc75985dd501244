"""What this user may do with each part of a store or of the cache, for `begat doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from begat.format import StoreFormat


@dataclass(frozen=True, slots=True)
class Refusal:
    """A part that this user may not use: its path, what is refused (`read`, `write`), and whose it is."""

    path: Path
    what: str
    owner: str

    @property
    def told(self) -> str:
        """`cannot be written: it belongs to ann and has the mode 755`."""
        return f"cannot be {'read' if self.what == 'read' else 'written'}: {self.owner}"


def store_refusals(path: Path, store: StoreFormat) -> tuple[list[Refusal], bool]:
    """What is refused in a store; and whether it can only be read, as a whole.

    A store of which nothing can be written is one that is meant to be read: that is no refusal.
    """
    catalog = store.catalog_file
    beside = [catalog.with_name(f"{catalog.name}{end}") for end in ("-wal", "-shm")]
    vital = [path, store.catalog_folder, catalog, store.objects_folder / "objects"]
    read = [*vital, *beside, *_folders_in(store.objects_folder / "objects")]
    written = [
        *read,
        *(store.lock_folder, *_names_in(store.lock_folder)),
        *(store.objects_folder / "tmp", store.objects_folder / "damaged"),
        *(path / "staging", *_folders_in(path / "staging")),
    ]
    unread = list(_refused(read, "read"))
    is_read_only = not any(os.access(each, os.W_OK) for each in vital if _exists(each))
    if is_read_only:
        return unread, True
    known = {refusal.path for refusal in unread}
    return unread + [one for one in _refused(written, "write") if one.path not in known], False


def read_refusal(path: Path) -> Refusal | None:
    """What is refused of one file or folder that is to be read."""
    return next(_refused([path], "read"), None)


def cache_refusals(root: Path) -> list[Refusal]:
    """What is refused in the cache; if it is not there yet, in the folder that it would be made in."""
    if not _exists(root):
        return list(_refused([next(place for place in root.parents if _exists(place))], "write"))
    locks = root / "locks"
    return list(_refused([root, locks, *_names_in(locks), *_folders_in(root)], "write"))


def _refused(paths: Iterable[Path], what: str) -> Iterator[Refusal]:
    """Each path once that is there and may not be read, or not be written; what is written is read too."""
    needed = os.R_OK if what == "read" else os.R_OK | os.W_OK
    for path in dict.fromkeys(paths):
        enter = os.X_OK if os.path.isdir(path) else 0
        if _exists(path) and not os.access(path, needed | enter):
            yield Refusal(path, what, _owner(path))


def _exists(path: Path) -> bool:
    return os.access(path, os.F_OK)


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in _names_in(folder) if os.path.isdir(path)]


def _names_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or refused, which is told of the folder itself
        return []


def _owner(path: Path) -> str:
    facts = path.stat()
    try:
        owner = path.owner()
    except (KeyError, OSError, NotImplementedError):
        owner = f"the user {facts.st_uid}"
    return f"it belongs to {owner} and has the mode {facts.st_mode & 0o7777:o}"
