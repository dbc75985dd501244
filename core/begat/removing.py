"""A folder of ours is removed with all that is in it: never through a link, and however deep it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from begat.errors import DestinationDiffers
from begat.files import remove
from begat.folders import Folder


class _Emptied(msgspec.Struct, frozen=True):
    """A folder without its files: its name, which one it is, and the folders in it that are still to be removed."""

    name: str
    id: tuple[int, int]
    folders: list[str]


def remove_tree(root: Path) -> None:
    """Remove a folder and all in it, read-only ones too; a link is removed itself. What is not there is no error.

    What another process removes or adds meanwhile is none either; a folder that it adds to may stay.
    """
    root = Path(os.path.abspath(root))
    if root.is_dir() and not root.is_symlink():
        with Folder.at(root.parent) as above:
            _remove_folder(above, root.name)
    else:
        remove(root)


def _remove_folder(top: Folder, name: str) -> None:
    """Down and up again with one folder open at a time.

    A path from the root may be longer than the system takes, and a tree deeper than Python's stack and than the
    number of descriptors that a process may have.
    """
    trail: list[_Emptied] = []
    here, inner = top, name
    try:
        while True:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                here = _moved(here, here.enter(inner, make=False), top)
                trail.append(_emptied(here, inner))
            while trail and not trail[-1].folders:
                done = trail.pop()
                here = _moved(here, _above(here, trail) if trail else top, top)
                here.remove_directory(done.name)
            if not trail:
                return
            inner = trail[-1].folders.pop()
    finally:
        _moved(here, top, top)


def _emptied(folder: Folder, name: str) -> _Emptied:
    with contextlib.suppress(OSError):
        folder.make_writable()
    inner: list[str] = []
    for each, is_folder in folder.list_kinds():
        if is_folder:
            inner.append(each)
        else:
            with contextlib.suppress(FileNotFoundError):
                folder.remove(each)
    return _Emptied(name, folder.id, inner)


def _above(folder: Folder, trail: list[_Emptied]) -> Folder:
    above = folder.above()
    if above.id != trail[-1].id:
        above.close()
        raise DestinationDiffers(
            f"{folder.path} was moved while it was removed; nothing was removed where it is now"
        )
    return above


def _moved(here: Folder, there: Folder, top: Folder) -> Folder:
    """`there`; the folder that was left is closed, unless it is the caller's."""
    if here is not top and here is not there:
        here.close()
    return there
