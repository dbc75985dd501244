"""Which folders this process was given versions in, so that data which is read from one is known to be that version.

What was done to the files since is not looked at: this tells where data comes from, not what it is. So are objects
remembered that were recognised as a version's content; of those the digest tells whether they still are.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator

import msgspec

# Enough for any training; a process that reads thousands of versions must not grow by each.
MOST_FOLDERS = 4_096
MOST_VERSIONS_OF_A_FOLDER = 8
MAX_PATH_CHARACTERS = 4_096


class HandedOut(msgspec.Struct, frozen=True):
    """A version of a store, and where below the folder that it was given in a path lies (`""`: the folder itself).

    `is_shared` tells that other files may lie in that folder too, as in one that was downloaded to.
    """

    store_uid: str
    version_uid: str
    inside: str
    is_shared: bool


# Real path of a folder -> (store, version, is shared), oldest first; the folders, too, oldest first.
_given: dict[str, tuple[tuple[str, str, bool], ...]] = {}
_lock = threading.Lock()


def remember(
    folder: str | os.PathLike[str], *, store_uid: str, version_uid: str, is_shared: bool
) -> None:
    """Note that the caller was given a version in this folder; one given there before is the older one."""
    place, given = os.path.realpath(folder), (store_uid, version_uid, is_shared)
    with _lock:
        before = tuple(one for one in _given.pop(place, ()) if one[:2] != given[:2])
        _given[place] = (*before, given)[-MOST_VERSIONS_OF_A_FOLDER:]
        while len(_given) > MOST_FOLDERS:
            del _given[next(iter(_given))]


def find(path: str | os.PathLike[str]) -> Iterator[HandedOut]:
    """The versions that were given in a folder which this path is or lies in, links followed.

    The nearest folder comes first, and of several versions in one folder the newest. The path need not exist.
    """
    place = real_path(path)
    if place is None:
        return
    folder = place
    while True:
        for store_uid, version_uid, is_shared in reversed(_given.get(folder, ())):
            inside = place[len(folder) :].strip(os.sep).replace(os.sep, "/")
            yield HandedOut(store_uid, version_uid, inside, is_shared)
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


def real_path(path: str | os.PathLike[str]) -> str | None:
    """The path with links followed; None for text that can be no path, whatever it is."""
    text = os.fspath(path)
    if not text or len(text) > MAX_PATH_CHARACTERS:
        return None
    try:
        return os.path.realpath(text)
    except (OSError, ValueError):  # NUL, lone surrogates, a folder that may not be looked into
        return None


# id of an object -> the object, as long as it lives, and (store, version, digest of its content if that is known).
# No lock: single steps on a dict, and an object may die while this very thread is in one of them.
_objects: dict[int, tuple[weakref.ref[object], tuple[str, str, str | None]]] = {}


def remember_object(value: object, *, store_uid: str, version_uid: str, digest: str | None) -> None:
    """Note that this very object holds a version's content; one of a class without weak references is not noted."""
    key = id(value)

    def forget(gone: weakref.ref[object]) -> None:
        kept = _objects.get(key)
        if kept is not None and kept[0] is gone:  # else another object has got the id
            _objects.pop(key, None)

    try:
        _objects[key] = (weakref.ref(value, forget), (store_uid, version_uid, digest))
    except TypeError:
        return


def find_object(value: object) -> tuple[str, str, str | None] | None:
    """(store, version, digest) of an object that was recognised; the digest is None where it could not be known."""
    kept = _objects.get(id(value))
    return kept[1] if kept is not None and kept[0]() is value else None


def _start_anew_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
