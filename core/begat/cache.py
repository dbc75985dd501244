"""Read-only folders of versions, shared by all processes of a user: checked out once, then only looked at.

    <cache>/<hex of the content digest>/files/    the folder that is handed out
    <cache>/<hex of the content digest>/seal      what each file's stat was when its bytes had been verified
    <cache>/locks/<hex>.hold                      held shared by each process that was given the folder
    <cache>/locks/<hex>.build                     held by the process that builds or mends it

A folder whose stat walk agrees with its seal is handed out as it is. Anything else is mended from the store. The cache
is never the only copy of anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import msgspec

from begat.blobs import BlobReader
from begat.config import CACHE_VARIABLE
from begat.errors import AccessDenied, BegatError, CatalogBusy, DestinationDiffers, ReadOnly
from begat.files import (
    make_directory,
    remove,
    replace_with,
    set_mode,
    set_times,
    told_as,
)
from begat.handed_out import real_path
from begat.identity import Digest
from begat.locks import FileLock
from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile
from begat.removing import remove_tree

SEAL_FORMAT = 1
BUILD_WAIT_S = 3600.0
# How recently used is kept to the minute: a stat walk should not cost a write each time.
USED_GRAIN_NS = 60 * 1_000_000_000

_FOLDER = re.compile(r"[0-9a-f]{64}")


class _Stat(msgspec.Struct, array_like=True, frozen=True):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


class _Seal(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    format: int
    ref: str
    size_bytes: int
    files: dict[str, _Stat]


_decode_seal = msgspec.msgpack.Decoder(_Seal).decode


class CachedFolder(msgspec.Struct, frozen=True):
    """One folder of the cache; `used_at` in microseconds since 1970 UTC, to the minute."""

    digest: Digest
    ref: str
    path: Path
    size_bytes: int
    used_at: int
    is_in_use: bool


class Cache:
    """The cache below one root; `limit_bytes` is kept to after each new folder, least recently used first."""

    def __init__(self, root: Path, *, limit_bytes: int | None = None) -> None:
        self.root = root
        self._limit_bytes = limit_bytes
        # Kept until the process ends: what was handed out is not pruned under its user.
        self._held: dict[Digest, FileLock] = {}

    def folder(
        self,
        digest: Digest,
        entries: Callable[[], Sequence[Entry]],
        ref: str,
        *,
        reader: Callable[[], BlobReader],
    ) -> Path:
        """The read-only folder with these entries (remote ones left out), verified, built or mended where needed.

        The entries are asked for only then.
        """
        with told_as(f"using the cache folder {self.root} ({CACHE_VARIABLE} chooses another one)"):
            try:
                self._hold(digest)
            except (AccessDenied, ReadOnly) as error:
                raise AccessDenied(
                    f"the cache folder {self.root} cannot be written by this user; nothing is wrong with the store. "
                    f"Set {CACHE_VARIABLE} to a folder that can be written, or download the version instead ({error})"
                ) from error
            place = self.root / _hex(digest)
            if not self._is_intact(place):
                with self._lock(digest, "build", BUILD_WAIT_S):
                    if not self._is_intact(place):
                        self._build(place, entries(), ref, reader())
                        self.prune(self._limit_bytes)
            self._mark_used(place / "seal")
            return place / "files"

    def intact(self, digest: Digest) -> Path | None:
        """The folder with this content if it is here and as it was verified; nothing is built for it."""
        place = self.root / _hex(digest)
        return place / "files" if self._is_intact(place) else None

    def digest_at(self, path: str | os.PathLike[str]) -> Digest | None:
        """The content that a path in this cache is of, links followed and nothing verified; None for any other path."""
        real, root = real_path(path), os.path.realpath(self.root)
        if real is None or not real.startswith(root + os.sep):
            return None
        name, _, rest = real[len(root) + 1 :].partition(os.sep)
        is_inside = rest.partition(os.sep)[0] == "files"
        return Digest(f"b3:{name}") if is_inside and _FOLDER.fullmatch(name) else None

    def list(self) -> list[CachedFolder]:
        """All complete folders, least recently used first."""
        found: list[CachedFolder] = []
        with told_as(
            f"reading the cache folder {self.root} ({CACHE_VARIABLE} chooses another one)"
        ):
            places = list(self.root.iterdir()) if self.root.is_dir() else []
        for place in places:
            seal = _read_seal(place / "seal")
            if seal is None:
                continue
            digest = Digest(f"b3:{place.name}")
            used_at = (place / "seal").stat().st_mtime_ns // 1000
            found.append(
                CachedFolder(
                    digest,
                    seal.ref,
                    place / "files",
                    seal.size_bytes,
                    used_at,
                    self._is_in_use(digest),
                )
            )
        return sorted(found, key=lambda folder: (folder.used_at, folder.digest))

    def remove(self, digest: Digest) -> bool:
        """Remove one folder; False if there is none or a process uses it."""
        try:
            with self._lock(digest, "hold", 0.0), self._lock(digest, "build", 0.0):
                place = self.root / _hex(digest)
                existed = place.exists()
                remove_tree(place)
                return existed
        except CatalogBusy:
            return False

    def prune(self, limit_bytes: int | None) -> list[CachedFolder]:
        """Remove folders that nobody uses, least recently used first, until at most `limit_bytes` are left."""
        removed: list[CachedFolder] = []
        if limit_bytes is None:
            return removed
        folders = self.list()
        total = sum(folder.size_bytes for folder in folders)
        for folder in folders:
            if total <= limit_bytes:
                break
            if self.remove(folder.digest):
                total -= folder.size_bytes
                removed.append(folder)
        return removed

    def _build(self, place: Path, entries: Sequence[Entry], ref: str, reader: BlobReader) -> None:
        from begat.checkout import checkout  # most processes only find the folders that are there

        target = place / "files"
        kept = [entry for entry in entries if not isinstance(entry, RemoteAsset)]
        make_directory(place)
        try:
            _clear(target, kept)
            checkout(kept, target, reader, overwrite="overwrite", read_only=True)
        except DestinationDiffers:
            # Something else stands where a folder or file is to be: nothing there is worth keeping.
            remove_tree(target)
            checkout(kept, target, reader, overwrite="overwrite", read_only=True)
        for entry in kept:
            if isinstance(entry, StoredFile):
                _set_mode(target / entry.path, 0o555 if entry.is_executable else 0o444)
        for path, is_folder in list(_walk(target)):
            if is_folder:
                _set_mode(path, 0o555)
        _set_mode(target, 0o555)
        seal = _Seal(SEAL_FORMAT, ref, sum(e.size_bytes or 0 for e in kept), dict(_stats(target)))
        replace_with(place / "seal", msgspec.msgpack.encode(seal))

    def _is_intact(self, place: Path) -> bool:
        seal = _read_seal(place / "seal")
        if seal is None:
            return False
        count = 0
        try:
            for path, found in _stats(place / "files"):
                # The first difference is enough: what somebody planted may be deeper than a path can tell.
                if seal.files.get(path) != found:
                    return False
                count += 1
        except OSError:
            return False
        return count == len(seal.files)

    def _mark_used(self, seal: Path) -> None:
        now = time.time_ns()
        with contextlib.suppress(OSError):  # a cache that others own may still be read
            if abs(now - seal.stat().st_mtime_ns) > USED_GRAIN_NS:
                set_times(seal, now)

    def _hold(self, digest: Digest) -> None:
        held = self._held.get(digest)
        if held is None or not held.is_held:  # a forked child does not hold what its parent holds
            lock = FileLock(self._lock_path(digest, "hold"))
            if not lock.acquire("shared", deadline_s=time.monotonic() + BUILD_WAIT_S):
                raise CatalogBusy(f"the cache {self.root} is being pruned for too long; try again")
            self._held[digest] = lock

    def _is_in_use(self, digest: Digest) -> bool:
        held = self._held.get(digest)
        if held is not None and held.is_held:
            return True
        try:
            with self._lock(digest, "hold", 0.0):
                return False
        except BegatError:
            return True

    @contextlib.contextmanager
    def _lock(self, digest: Digest, kind: str, wait_s: float) -> Generator[None]:
        lock = FileLock(self._lock_path(digest, kind))
        try:
            if not lock.acquire("exclusive", deadline_s=time.monotonic() + wait_s):
                raise CatalogBusy(
                    f"another process works on the cached folder of {digest}; try again"
                )
            yield
        finally:
            lock.release()

    def _lock_path(self, digest: Digest, kind: str) -> Path:
        return self.root / "locks" / f"{_hex(digest)}.{kind}"


def _hex(digest: Digest) -> str:
    return digest.removeprefix("b3:")


def _read_seal(path: Path) -> _Seal | None:
    try:
        seal = _decode_seal(path.read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError):  # ValueError: text that is not UTF-8
        return None
    return seal if seal.format == SEAL_FORMAT else None


def _stats(root: Path) -> Iterator[tuple[str, _Stat]]:
    """Path below the root, and what stat says: of files and links all, of folders (the root is "") only the mode."""
    yield "", _Stat(0, 0, 0, 0, os.lstat(root).st_mode)
    base = len(str(root)) + 1
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as listing:
            for item in listing:
                stats = item.stat(follow_symlinks=False)
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                    yield item.path[base:], _Stat(0, 0, 0, 0, stats.st_mode)
                else:
                    yield (
                        item.path[base:],
                        _Stat(
                            stats.st_size,
                            stats.st_mtime_ns,
                            stats.st_ctime_ns,
                            stats.st_ino,
                            stats.st_mode,
                        ),
                    )


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """Everything below a folder as (path, is a folder), folders before what is in them."""
    folders = [root]
    while folders:
        folder = folders.pop()
        if not folder.is_dir() or folder.is_symlink():
            continue
        with os.scandir(folder) as listing:
            for item in list(listing):
                is_folder = item.is_dir(follow_symlinks=False)
                yield Path(item.path), is_folder
                if is_folder:
                    folders.append(Path(item.path))


def _clear(target: Path, entries: Sequence[Entry]) -> None:
    """Make the folders of the entries writable, and remove what is no entry, or is in the way of one."""
    files = {entry.path for entry in entries if not isinstance(entry, EmptyDirectory)}
    folders = {entry.path for entry in entries} - files
    for entry in entries:
        at = entry.path.find("/")
        while at != -1:
            folders.add(entry.path[:at])
            at = entry.path.find("/", at + 1)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        remove(target)
    pending = [""] if target.is_dir() else []
    while pending:
        above = pending.pop()
        set_mode(target / above, 0o700)
        with os.scandir(target / above) as listing:
            listed = list(listing)
        for item in listed:
            name = f"{above}/{item.name}" if above else item.name
            is_folder = item.is_dir(follow_symlinks=False)
            if name not in (folders if is_folder else files):
                remove_tree(Path(item.path))
            elif is_folder:
                pending.append(name)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:
        set_mode(path, mode)
