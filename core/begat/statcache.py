"""What the files of a folder held when they were last read, so that a log of the same folder need not read them again.

One file for each store, folder and logical path below `stat/` in the user's cache directory:

    frame ... frame  trailer  length of the trailer (4 bytes)  checksum of the trailer (32 bytes)

A frame has the rows of a `Block`: paths, what stat said of each, digests. The trailer names the frames with their
checksums, and the content digest of the version that exactly these rows came to.

A row is believed only if stat says of the file now what it said then, in every number. A file that was changed less
than two seconds before it was read may change once more without any of them changing, so its row is never believed
("racily clean" in git's words). Rows prove themselves, so any number of processes may write at once: the last one wins.
Nothing is lost with such a file; one that is damaged, of another begat or of another user counts as none.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from array import array
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from begat.errors import BegatError
from begat.files import NewFile, make_directory, open_source, remove, set_times
from begat.identity import Digest

VERSION = 1
CONTEXT = "begat stat cache v1"
FOLDER = "stat"
BLOCK_ENTRIES = 4096

# A file that was changed so shortly before it was read is not believed to be unchanged; FAT counts in steps of 2 s.
YOUNG_NS = 2 * 10**9
# The same where the file system's own clock could not be asked: it may be a server's, and go wrong by a few seconds.
YOUNG_BY_OUR_CLOCK_NS = 60 * 10**9
USED_GRAIN_NS = 60 * 10**9

MOST_FILES = 64
MOST_BYTES = 1 << 30
# Looking at all that is kept costs as much as a small log, so only every so many logs of a process do it.
PRUNED_EVERY = 16

SEEN_NUMBERS = 6
_SEEN_BYTES = SEEN_NUMBERS * 8
_DIGEST_BYTES = 32
UNKNOWN = bytes(_DIGEST_BYTES)
_END_BYTES = 4 + 32
_SUFFIX = ".rows"
_UNNAMED = ".tmp"
_LEFTOVER_S = 3600.0


class Seen(NamedTuple):
    """What stat said of a file; equal ones are the same file with the same bytes, unless it was changed just now.

    Those of a whole folder are plain tuples, `Numbers`, which take a third of the time to make.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    mode: int


Numbers: TypeAlias = tuple[int, int, int, int, int, int]


def seen_of(found: os.stat_result) -> Seen:
    """What stat said, as it is kept."""
    return Seen._make(
        map(
            _signed,
            (
                *(found.st_size, found.st_mtime_ns, found.st_ctime_ns),
                *(found.st_ino, found.st_dev, found.st_mode),
            ),
        )
    )


def _signed(number: int) -> int:
    """An inode or device number may need all 64 bits."""
    return number - (1 << 64) if number >> 63 == 1 else number


def seen_column(numbers: Sequence[int]) -> array[int]:
    """The numbers of many `Seen` one after another, as a column."""
    try:
        return array("q", numbers)
    except OverflowError:
        return array("q", map(_signed, numbers))


class Block(msgspec.Struct):
    """Some thousand entries of a folder in order of their paths, as columns: a million files must fit into memory.

    A link or an empty folder has a mode and otherwise zeros. `others` has the target of a link, or the real path of
    a file behind a link that was followed, by the number of the row.
    """

    paths: str  # one line each; no path holds a newline
    seen: array[int]
    others: dict[int, bytes] = msgspec.field(default_factory=dict[int, bytes])
    digests: bytes = b""  # 32 bytes each, or none at all; zeros where nothing is known

    def __len__(self) -> int:
        return len(self.seen) // SEEN_NUMBERS

    def rows(self) -> Iterator[tuple[str, Numbers]]:
        """Path and stat of each entry, as `Seen` has it."""
        each = iter(self.seen)
        numbers = zip(each, each, each, each, each, each, strict=True)
        return zip(self.paths.split("\n"), numbers, strict=True)

    def raw_digests(self) -> Iterator[bytes]:
        """The digest of each entry as 32 bytes."""
        column = self.digests or UNKNOWN * len(self)
        return (column[at : at + _DIGEST_BYTES] for at in range(0, len(column), _DIGEST_BYTES))


class Recalled(msgspec.Struct, frozen=True):
    """What is known of a folder: `content` is the digest of the version that exactly these rows came to, if they did.

    `problem` is what its names would be in the way of on other systems.
    """

    content: Digest | None = None
    problem: str = ""


NOTHING = Recalled()


class StatCache:
    """The rows of all folders that were logged into one store; in `probes` a file may be made for a moment."""

    def __init__(self, cache: Path, store_uid: str, *, probes: Sequence[Path] = ()) -> None:
        self.folder = cache / FOLDER
        self._store_uid = store_uid
        self._probes = (*probes, self.folder)
        self._kept = 0

    def recall(self, root: str, prefix: str, blocks: Sequence[Block]) -> Recalled:
        """Fill in the digests of rows that are as they were, for the folder with this real path, logged at `prefix`."""
        key = self._key(root, prefix)
        with contextlib.suppress(*_UNREADABLE), _opened(self.folder / key) as kept:
            if kept.trailer.key != key:
                return NOTHING
            is_same = _fill(blocks, kept)
            self._mark_used(key, kept.fd)
            if is_same and kept.trailer.content:
                return Recalled(Digest(kept.trailer.content), kept.trailer.problem)
        return NOTHING

    def clock(self, root: str) -> Clock:
        """The time by the file system that a folder lies on, before any of its files is read."""
        device = _device_of(root)
        for folder in self._probes:
            if _device_of(folder) == device:
                with contextlib.suppress(OSError, BegatError), NewFile(folder, _UNNAMED) as probe:
                    return Clock(device, os.fstat(probe.fd).st_mtime_ns - YOUNG_NS)
        return Clock(device, time.time_ns() - YOUNG_BY_OUR_CLOCK_NS)

    def keep(
        self,
        root: str,
        prefix: str,
        blocks: Sequence[Block],
        *,
        clock: Clock,
        content: Digest | None,
        problem: str,
    ) -> None:
        """Remember the digests of a folder; rows that are too young, and those without a digest, are not believed.

        Nothing happens where this cannot be written: it is a cache.
        """
        if not any(_is_any_believable(block, clock) for block in blocks):
            return
        key = self._key(root, prefix)
        with contextlib.suppress(OSError, BegatError, UnicodeError):
            make_directory(self.folder)
            with NewFile(self.folder, _UNNAMED) as new:
                whole = Recalled(content, problem)
                _write(new, key, os.fsencode(root), blocks, clock=clock, whole=whole)
                new.publish(self.folder / key, mode=0o600, durable=False)
            self._prune_sometimes()

    def _prune_sometimes(self) -> None:
        if self._kept % PRUNED_EVERY == 0:
            prune(self.folder.parent)
        self._kept += 1

    def _key(self, root: str, prefix: str) -> str:
        text = "\0".join((self._store_uid, root, prefix))
        return blake3(os.fsencode(text)).hexdigest()[:32] + _SUFFIX

    def _mark_used(self, key: str, fd: int) -> None:
        now = time.time_ns()
        if abs(now - os.fstat(fd).st_mtime_ns) > USED_GRAIN_NS:
            with contextlib.suppress(OSError):
                set_times(self.folder / key, now)


class Clock(msgspec.Struct, frozen=True):
    """What was changed before `trusted_before_ns` is old enough, in the file system with this device number."""

    device: int | None
    trusted_before_ns: int

    def is_old(self, seen: Numbers) -> bool:
        """Whether a change after it was read would have changed its times too."""
        _, mtime_ns, ctime_ns, _, device, _ = seen
        before = self.trusted_before_ns
        if device != self.device:  # another file system below the folder
            before -= YOUNG_BY_OUR_CLOCK_NS
        return mtime_ns < before and ctime_ns < before

    def are_old(self, column: array[int]) -> bool:
        """Whether all of a column are, and lie in this file system; links and empty folders have no time and device."""
        return (
            set(column[4::SEEN_NUMBERS]) <= {self.device, 0}
            and max(column[1::SEEN_NUMBERS]) < self.trusted_before_ns
            and max(column[2::SEEN_NUMBERS]) < self.trusted_before_ns
        )


def _device_of(folder: str | Path) -> int | None:
    try:
        return _signed(os.stat(folder).st_dev)
    except OSError:
        return None


# --- files ---


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    paths: str
    seen: bytes
    others: dict[int, bytes]
    digests: bytes


class _Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    offset: int
    length: int
    checksum: bytes


class _Trailer(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    byteorder: str
    key: str
    root: bytes
    content: str
    problem: str
    frames: list[_Place]


_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(_Frame).decode
_decode_trailer = msgspec.msgpack.Decoder(_Trailer).decode


class _Unusable(Exception):
    """A file that says nothing to us."""


# What damaged files come to, and msgspec on arbitrary bytes.
_UNREADABLE = (
    *(OSError, _Unusable, msgspec.MsgspecError),
    *(ValueError, TypeError, RecursionError, OverflowError),
)


class _Kept:
    """An open file of rows, whose trailer was found to be sound."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        # Whoever may write into a folder that several use could make anybody believe anything.
        if not stat.S_ISREG(found.st_mode) or found.st_uid != _own_uid(found):
            raise _Unusable
        end = self._read(found.st_size - _END_BYTES, _END_BYTES)
        length = int.from_bytes(end[:4], "big")
        data = self._read(found.st_size - _END_BYTES - length, length)
        if blake3(data, derive_key_context=CONTEXT).digest() != end[4:]:
            raise _Unusable
        self.trailer = _decode_trailer(data)
        if (self.trailer.version, self.trailer.byteorder) != (VERSION, sys.byteorder):
            raise _Unusable

    def blocks(self) -> Iterator[Block]:
        """The rows, each block checked before it is handed out."""
        for place in self.trailer.frames:
            data = self._read(place.offset, place.length)
            if blake3(data).digest() != place.checksum:
                raise _Unusable
            frame = _decode_frame(data)
            seen = array("q")
            seen.frombytes(frame.seen)
            block = Block(frame.paths, seen, frame.others, frame.digests)
            if len(block) != frame.paths.count("\n") + 1 or len(frame.digests) != 32 * len(block):
                raise _Unusable
            yield block

    def _read(self, offset: int, length: int) -> bytes:
        if offset < 0 or not 0 <= length <= os.fstat(self.fd).st_size:
            raise _Unusable
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise _Unusable
        return data


def _own_uid(found: os.stat_result) -> int:
    return os.geteuid() if hasattr(os, "geteuid") else found.st_uid


@contextlib.contextmanager
def _opened(path: Path) -> Generator[_Kept]:
    fd = open_source(path)
    try:
        yield _Kept(fd)
    finally:
        os.close(fd)


def _write(
    new: NewFile, key: str, root: bytes, blocks: Sequence[Block], *, clock: Clock, whole: Recalled
) -> None:
    places: list[_Place] = []
    offset = 0
    is_all = True
    for block in blocks:
        seen, is_all_of_block = _believable(block, clock)
        is_all = is_all and is_all_of_block
        digests = block.digests or UNKNOWN * len(block)
        data = _encode(_Frame(block.paths, seen, block.others, digests))
        new.write(data)
        places.append(_Place(offset, len(data), blake3(data).digest()))
        offset += len(data)
    content = (whole.content or "") if is_all else ""
    data = _encode(_Trailer(VERSION, sys.byteorder, key, root, content, whole.problem, places))
    checksum = blake3(data, derive_key_context=CONTEXT).digest()
    new.write(data + len(data).to_bytes(4, "big") + checksum)


def _is_any_believable(block: Block, clock: Clock) -> bool:
    digests = block.raw_digests()
    return any(
        digest != UNKNOWN and clock.is_old(seen)
        for (_, seen), digest in zip(block.rows(), digests, strict=True)
    )


def _believable(block: Block, clock: Clock) -> tuple[bytes, bool]:
    """The column of stats, with what is not to be believed made such that no stat is ever equal to it.

    Also whether all files can be believed.
    """
    # Nearly always: a loop over the rows would take ten times as long.
    if block.digests and UNKNOWN not in block.digests and clock.are_old(block.seen):
        return block.seen.tobytes(), True
    column = array("q", block.seen)
    is_all = True
    for at, ((_, seen), digest) in enumerate(zip(block.rows(), block.raw_digests(), strict=True)):
        if stat.S_ISREG(seen[5]) and (digest == UNKNOWN or not clock.is_old(seen)):
            is_all = False
            column[at * SEEN_NUMBERS] = -1  # no file has this size
    return column.tobytes(), is_all


# --- what is as it was ---


def _fill(blocks: Sequence[Block], kept: _Kept) -> bool:
    """Fill in the digests that are known; True if every row is as it was, and there are no others."""
    known = kept.blocks()
    is_same = True
    window: dict[str, tuple[Numbers, bytes, bytes | None]] = {}
    last = ""
    for block in blocks:
        theirs = None
        if is_same:
            theirs = next(known, None)
            if theirs is not None and _is_equal(block, theirs):
                block.digests = theirs.digests
                continue
            is_same = False
            window, last = ({}, "") if theirs is None else _by_path(theirs)
        paths = block.paths.split("\n")
        block_window = dict(window)
        while last < paths[-1] and (theirs := next(known, None)) is not None:
            window, last = _by_path(theirs)
            block_window |= window
        block.digests = _joined(block, block_window)
    return is_same and next(known, None) is None


def _is_equal(block: Block, theirs: Block) -> bool:
    return (
        block.seen == theirs.seen and block.paths == theirs.paths and block.others == theirs.others
    )


def _by_path(block: Block) -> tuple[dict[str, tuple[Numbers, bytes, bytes | None]], str]:
    rows = {
        path: (seen, digest, block.others.get(at))
        for at, ((path, seen), digest) in enumerate(
            zip(block.rows(), block.raw_digests(), strict=True)
        )
    }
    return rows, next(reversed(rows))


def _joined(block: Block, known: dict[str, tuple[Numbers, bytes, bytes | None]]) -> bytes:
    found: list[bytes] = []
    for at, (path, seen) in enumerate(block.rows()):
        row = known.get(path)
        is_as_it_was = row is not None and row[0] == seen and row[2] == block.others.get(at)
        found.append(row[1] if row is not None and is_as_it_was else UNKNOWN)
    return b"".join(found)


# --- care ---


class KeptRows(msgspec.Struct, frozen=True):
    """The rows of one folder, as they are kept; `is_needed` is False where no such folder is there any more."""

    path: Path
    size_bytes: int
    used_at_s: float
    is_needed: bool


def kept_rows(cache: Path) -> list[KeptRows]:
    """What is kept below a cache directory, most recently used first."""
    found: list[KeptRows] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in (cache / FOLDER).iterdir():
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if path.suffix == _SUFFIX:
                    is_needed = _is_there(path)
                elif path.suffix == _UNNAMED:
                    is_needed = (
                        time.time() - facts.st_mtime < _LEFTOVER_S
                    )  # its writer may be at work
                else:
                    continue
                found.append(KeptRows(path, facts.st_size, facts.st_mtime, is_needed))
    return sorted(found, key=lambda rows: rows.used_at_s, reverse=True)


def prune(cache: Path, *, everything: bool = False) -> int:
    """Remove rows of folders that are gone, and the least recently used beyond what is kept; how many files went."""
    removed = kept_bytes = 0
    for number, rows in enumerate(kept_rows(cache)):
        kept_bytes += rows.size_bytes
        is_kept = rows.is_needed and number < MOST_FILES and kept_bytes <= MOST_BYTES
        if everything or not is_kept:
            removed += remove(rows.path)
    return removed


def _is_there(path: Path) -> bool:
    try:
        with _opened(path) as kept:
            return os.path.isdir(kept.trailer.root)
    except _UNREADABLE:
        return False
