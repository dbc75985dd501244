"""Where a large file is cut into parts, so that versions of it share what did not change.

A cut only saves bytes; it never decides what a file is. So whatever a file claims about itself is used if it fits the
file exactly, and otherwise ignored: no content makes this module fail.

    .safetensors                             at tensors                        safetensors/1M
    zip: .pt .ckpt .npz .keras .zip ...      at members                        zip/1M
    others, and what does not parse          by content (FastCDC, 2020)        fastcdc2020/64K/nc1
    compressed as a whole (.gz .jpg ...),
      and all without the compiled part      every 4 MiB                       fixed/4M

A tensor or member is cut every 1 MiB from its own start, so growth at its end leaves the cuts before it alone. What
is smaller than 64 KiB (headers, gaps, biases, small members) is put together with its neighbours of that kind, and cut
by content, so that one more of them moves few cuts. From 16 GiB on, parts by content are sixteen times as large.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from begat.threads import check, gathered

SMALL_BYTES = 64 * 1024
PIECE_BYTES = 1024 * 1024
CUT_BYTES = 4 * 1024 * 1024
MAX_PART_BYTES = 8 * 1024 * 1024
# So much of a file is searched for cuts by one thread; several search at the same time.
RANGE_BYTES = 32 * 1024 * 1024
# From here on, parts of 64 KiB on average would make a recipe of tens of megabytes.
_HUGE_BYTES = 16 * 1024**3

# Files that are compressed as a whole: a change at one place changes all that follows, wherever they are cut.
_COMPRESSED_SUFFIXES = (
    *(".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"),
    *(".jpg", ".jpeg", ".png", ".gif", ".webp"),
)
# The safetensors library allows 100 MB; the largest headers in use have a few, and decoding takes 20 times the memory.
_MAX_HEADER_BYTES = 32 * 1024 * 1024
_MAX_MEMBERS = 500_000


@dataclass(frozen=True, slots=True)
class Split:
    """The lengths of the parts of a file, in order, and how they were found; they sum to the length of the file."""

    splitter: str
    lengths: list[int]


def split(buffer: memoryview | mmap.mmap | bytes | bytearray, name: str) -> Split:
    """Cut the bytes of a file called `name`; each part has at most 8 MiB.

    The buffer is only looked at, and let go of when this returns. It must not shrink meanwhile: map our own copy,
    never a user's file.
    """
    name = name.lower()
    with memoryview(buffer) as view:
        if name.endswith(".safetensors"):
            if pieces := _safetensors(view):
                return Split("safetensors/1M", list(_parts(view, pieces)))
        elif bytes(view[:4]) == b"PK\3\4":
            if pieces := _zip_members(view):
                return Split("zip/1M", list(_parts(view, pieces)))
        if splits_by_content() and not name.endswith(_COMPRESSED_SUFFIXES):
            return _by_content(view)
        return Split("fixed/4M", list(_cut(len(view), CUT_BYTES)))


def splits_by_content() -> bool:
    """Whether the compiled form of pyfastcdc is here; its Python form has half a percent of the speed."""
    try:
        from pyfastcdc import FastCDC
    except ImportError:
        return False
    return FastCDC.__module__.startswith("pyfastcdc.cy")


# --- from pieces to parts ---


def _parts(view: memoryview, pieces: Iterable[int]) -> Iterator[int]:
    at = run = 0
    for piece in pieces:
        if piece < SMALL_BYTES:
            run += piece
        else:
            yield from _loose(view, at - run, at)
            run = 0
            yield from _cut(piece, PIECE_BYTES)
        at += piece
    yield from _loose(view, at - run, at)


def _loose(view: memoryview, begin: int, end: int) -> Iterator[int]:
    """The parts of many small pieces that lie side by side."""
    if end - begin <= SMALL_BYTES or not splits_by_content():
        yield from _cut(end - begin, CUT_BYTES)
        return
    with view[begin:end] as run:
        yield from _by_content(run).lengths


def _cut(length: int, every: int) -> Iterator[int]:
    """A cut at equal distances; a rest below 64 KiB stays with the part before it."""
    while length >= every + SMALL_BYTES:
        yield every
        length -= every
    if length:
        yield length


def _by_content(view: memoryview) -> Split:
    average, text = (64 * 1024, "64K") if len(view) < _HUGE_BYTES else (1024 * 1024, "1M")
    starts = range(0, len(view), RANGE_BYTES)
    cuts = gathered(starts, lambda start: _cuts(view, start, average))
    ends: list[int] = []
    at = 0
    for start, theirs in zip(starts, cuts, strict=True):
        # A cut depends on the one before it and on nothing earlier: once two searches meet, they go on alike.
        meets = {start, *theirs}
        own = _lengths(view, at, average)
        while at not in meets and at < start + RANGE_BYTES and at < len(view):
            at += next(own)
            ends.append(at)
        if at in meets:
            ends += theirs[bisect_right(theirs, at) :]
            at = ends[-1]
    return Split(f"fastcdc2020/{text}/nc1", [end - begin for begin, end in pairwise([0, *ends])])


def _cuts(view: memoryview, start: int, average: int) -> list[int]:
    """Where the parts of one range end if the first of them begins with it; the last may end beyond it."""
    ends: list[int] = []
    at = start
    for length in _lengths(view, start, average):
        check()
        at += length
        ends.append(at)
        if at >= start + RANGE_BYTES:
            break
    return ends


def _lengths(view: memoryview, start: int, average: int) -> Iterator[int]:
    """The lengths of all parts from a cut on, as they are found."""
    from pyfastcdc import FastCDC

    # One object per search: it is not made for two threads at once.
    cutter = FastCDC(
        average, min_size=average // 4, max_size=MAX_PART_BYTES, normalized_chunking=1, seed=0
    )
    return (chunk.length for chunk in cutter.cut_buf(view[start:]))


# --- safetensors: 8 bytes length of the header, the header as JSON, the tensors (huggingface/safetensors, README) ---


class _Tensor(msgspec.Struct, gc=False):
    # `__metadata__` is read as a tensor without offsets.
    data_offsets: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET


_decode_header = msgspec.json.Decoder(dict[str, _Tensor]).decode


def _safetensors(view: memoryview) -> list[int] | None:
    """The lengths of header and tensors, or None unless they tile the file."""
    header_length = int.from_bytes(view[:8], "little")
    start = 8 + header_length
    if len(view) < 8 or header_length > _MAX_HEADER_BYTES or start > len(view):
        return None
    try:
        tensors = _decode_header(view[8:start])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    pieces = [start]
    at = 0
    for begin, end in sorted(
        tensor.data_offsets for tensor in tensors.values() if isinstance(tensor.data_offsets, tuple)
    ):
        if begin != at or end < begin:
            return None
        pieces.append(end - begin)
        at = end
    return pieces if start + at == len(view) else None


# --- zip: the directory at the end, never a member (PKWARE APPNOTE.TXT 6.3.10, section 4.3) ---

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def _zip_members(view: memoryview) -> list[int] | None:
    """The lengths of members and of the gaps between them, or None unless they lie in order in the file."""
    try:
        directory, count = _zip_directory(view)
        pieces: list[int] = []
        at = 0
        for begin, end in sorted(_zip_ranges(view, directory, count)):
            if begin < at or end > len(view):
                return None
            pieces += (begin - at, end - begin)
            at = end
    except (struct.error, ValueError, OverflowError):
        return None
    pieces.append(len(view) - at)
    return pieces


def _zip_directory(view: memoryview) -> tuple[int, int]:
    """Where the list of members starts, and how many there are; ValueError if there is none."""
    tail_start = max(0, len(view) - _END.size - 0xFFFF)
    found = bytes(view[tail_start:]).rfind(b"PK\5\6")
    if found < 0:
        raise ValueError("no end of a directory")
    at = tail_start + found
    _, _, _, _, count, size, start, _ = _END.unpack_from(view, at)
    if count == 0xFFFF or 0xFFFFFFFF in (size, start):
        magic, _, at64, _ = _END64_LOCATOR.unpack_from(view, at - _END64_LOCATOR.size)
        if magic != b"PK\6\7":
            raise ValueError("no 64-bit directory")
        magic, _, _, _, _, _, _, count, size, start = _END64.unpack_from(view, at64)
        if magic != b"PK\6\6":
            raise ValueError("no 64-bit directory")
    if count > _MAX_MEMBERS or start + size > len(view):
        raise ValueError("a directory that does not fit")
    return start, count


def _zip_ranges(view: memoryview, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Where the bytes of each member lie."""
    for _ in range(count):
        fields = _MEMBER.unpack_from(view, at)
        magic, size, raw_size, local = fields[0], fields[8], fields[9], fields[16]
        name_length, extra_length, comment_length = fields[10:13]
        if magic != b"PK\1\2":
            raise ValueError("not a member")
        at += _MEMBER.size + name_length
        if 0xFFFFFFFF in (size, local):
            extra = view[at : at + extra_length]
            size, local = _zip_wide(extra, raw_size=raw_size, size=size, local=local)
        at += extra_length + comment_length
        head = _LOCAL.unpack_from(view, local)
        if head[0] != b"PK\3\4":
            raise ValueError("no member where the directory says")
        begin = local + _LOCAL.size + head[9] + head[10]
        yield begin, begin + size


def _zip_wide(extra: memoryview, *, raw_size: int, size: int, local: int) -> tuple[int, int]:
    """Size and place of a member beyond 4 GiB: they stand in the extra field 1, those that did not fit only."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            if raw_size == 0xFFFFFFFF:
                at += 8
            if size == 0xFFFFFFFF:
                (size,) = struct.unpack_from("<Q", extra, at)
                at += 8
            if local == 0xFFFFFFFF:
                (local,) = struct.unpack_from("<Q", extra, at)
            return size, local
        at += length
    raise ValueError("no 64-bit size")
