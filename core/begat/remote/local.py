"""`file://`: files and folders of this machine, pinned by size and digest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from blake3 import blake3

from begat.errors import (
    AccessDenied,
    BadInput,
    BegatError,
    LimitExceeded,
    SourceChanged,
    Unavailable,
    UnsupportedFile,
    warn,
)
from begat.files import open_source, told_as
from begat.ignore import is_always_left_out
from begat.model import RemoteAsset
from begat.paths import check_path, path_key
from begat.progress import current, reporting
from begat.remote.pinned import changed, check_end, shown

READ_BYTES = 1 << 20


def pin_place(place: Path, uri: str, path: str, max_objects: int) -> list[RemoteAsset]:
    """The assets of a file or a folder as they are now; sorted by path."""
    try:
        mode = os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{shown(uri)} is not there; nothing was stored") from None
    except OSError as error:
        raise _cannot_read(uri, error) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnsupportedFile(f"{shown(uri)} is neither a file nor a folder; nothing was stored")
    if stat.S_ISREG(mode):
        with reporting(f"pinning {path}"):
            return [_pin_file(place, uri, path)]
    with told_as(f"listing {shown(uri)}"):
        found = list(_files_below(place, max_objects))
    if not found:
        raise BadInput(f"{shown(uri)} is a folder without a file; nothing was stored")
    with reporting(f"pinning {path}", total_files=len(found)):
        assets = [
            _pin_file(place / name, (place / name).as_uri(), f"{path}/{name}") for name in found
        ]
    return sorted(assets, key=lambda asset: path_key(asset.path))


def _files_below(root: Path, max_objects: int) -> Iterator[str]:
    folders = [""]
    count = 0
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as listed:
            for entry in listed:
                name = f"{folder}{entry.name}"
                if is_always_left_out(entry.name, entry.path):
                    warn(
                        f"{entry.path} is left out: folders of version control and begat stores always are"
                    )
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif not entry.is_file():
                    warn(f"{entry.path} is left out: it is not a file, or a link to none")
                else:
                    count += 1
                    if count > max_objects:
                        raise LimitExceeded(
                            f"{root} holds more than {max_objects} files; nothing was stored. "
                            "Raise max_objects, or choose a smaller folder"
                        )
                    yield name


def _pin_file(place: Path, uri: str, path: str) -> RemoteAsset:
    check_path(path)
    hasher = blake3()
    size_bytes = 0
    try:
        file = _opened(place, uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SourceChanged(f"{shown(uri)} vanished meanwhile; nothing was stored") from None
    with file:
        before = os.fstat(file.fileno())
        for data in _pieces(file, uri):
            hasher.update(data)
            size_bytes += len(data)
            current().advance(bytes=len(data))
        after = os.fstat(file.fileno())
    if before.st_mtime_ns != after.st_mtime_ns or not before.st_size == after.st_size == size_bytes:
        raise SourceChanged(f"{shown(uri)} changed while it was read; nothing was stored")
    current().advance(files=1)
    return RemoteAsset(path, uri, size_bytes, f"b3:{hasher.hexdigest()}")


def fetch_file(place: Path, asset: RemoteAsset, write: Callable[[bytes], None]) -> None:
    """Hand the bytes of a pinned file to `write`; `RemoteChanged` if it is another one now."""
    hasher = blake3()
    size_bytes = 0
    try:
        file = _opened(place, asset.uri)
    except (FileNotFoundError, NotADirectoryError):
        raise changed(asset, "it is not there any more") from None
    except IsADirectoryError:
        raise changed(asset, "it is a folder") from None
    with file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise changed(asset, "it is no file any more")
        if asset.size_bytes is not None and facts.st_size != asset.size_bytes:
            raise changed(asset, f"it has {facts.st_size} bytes")
        for data in _pieces(file, asset.uri):
            hasher.update(data)
            size_bytes += len(data)
            write(data)
    check_end(asset, size_bytes, f"b3:{hasher.hexdigest()}")


def _opened(place: Path, uri: str) -> FileIO:
    """The file for reading; a link is followed (the URI is what the user chose), a pipe is not waited for."""
    try:
        return open(
            place, "rb", buffering=0, opener=lambda path, _: open_source(os.path.realpath(path))
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise _cannot_read(uri, error) from error


def _pieces(file: FileIO, uri: str) -> Iterator[bytes]:
    try:
        while data := file.read(READ_BYTES):
            yield data
    except OSError as error:
        raise _cannot_read(uri, error) from error


def _cannot_read(uri: str, error: OSError) -> BegatError:
    message = f"{shown(uri)} cannot be read: {error.strerror}; nothing was changed"
    return AccessDenied(message) if isinstance(error, PermissionError) else Unavailable(message)
