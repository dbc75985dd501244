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

import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, groupby
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

SMALL_BYTES = 64 * 1024
PIECE_BYTES = 1024 * 1024
CUT_BYTES = 4 * 1024 * 1024
MAX_PART_BYTES = 8 * 1024 * 1024
# So much of a file is looked at in one go: little enough to stay in the processor's cache until all is done with it.
WINDOW_BYTES = 1024 * 1024
# From here on, parts of 64 KiB on average would make a recipe of tens of megabytes.
_HUGE_BYTES = 16 * 1024**3
_SAMPLES = 8

# Files that are compressed as a whole: a change at one place changes all that follows, wherever they are cut.
_COMPRESSED_SUFFIXES = (
    *(".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"),
    *(".jpg", ".jpeg", ".png", ".gif", ".webp"),
)
# The safetensors library allows 100 MB; the largest headers in use have a few, and decoding takes 20 times the memory.
_MAX_HEADER_BYTES = 32 * 1024 * 1024
_MAX_MEMBERS = 500_000

ReadAt: TypeAlias = Callable[[int, int], bytes | memoryview]
"""Gives bytes of a file, from an offset, so many; the file has them."""


class Run(NamedTuple):
    """Bytes of a file that are cut in one way: at equal distances, or by content if `every` is 0."""

    length: int
    every: int


class Layout(msgspec.Struct, frozen=True):
    """How a file is to be cut, from its beginning to its end, and the name of the way in which that was found."""

    splitter: str
    runs: list[Run]


class Window(NamedTuple):
    """Some of the bytes of a file, and the lengths of the parts that they are, which are whole parts."""

    data: memoryview
    lengths: list[int]


def layout_of(read_at: ReadAt, size_bytes: int, name: str) -> Layout:
    """How a file called `name` is to be cut; only what describes its structure is read.

    What it says may have changed before the file itself is read: then the cuts are at odd places, and do no harm.
    """
    name = name.lower()
    if name.endswith(".safetensors"):
        if pieces := _safetensors(read_at, size_bytes):
            return Layout("safetensors/1M", list(_runs(pieces)))
    elif read_at(0, min(4, size_bytes)) == b"PK\3\4":
        if pieces := _zip_members(read_at, size_bytes):
            return Layout("zip/1M", list(_runs(pieces)))
    if splits_by_content() and not name.endswith(_COMPRESSED_SUFFIXES):
        _, text = _average(size_bytes)
        return Layout(f"fastcdc2020/{text}/nc1", [Run(size_bytes, 0)])
    return Layout("fixed/4M", [Run(size_bytes, CUT_BYTES)])


def splits_by_content() -> bool:
    """Whether the compiled form of pyfastcdc is here; its Python form has half a percent of the speed."""
    try:
        from pyfastcdc import FastCDC
    except ImportError:
        return False
    return FastCDC.__module__.startswith("pyfastcdc.cy")


def cut(layout: Layout, read_at: ReadAt) -> Generator[Window]:
    """All bytes of a file in their order, each window a few parts of at most 8 MiB.

    A window is read in one go, or again and larger; until the next one is taken, its bytes must stay what they are.
    """
    at = 0
    for is_equal, runs in groupby(layout.runs, key=lambda run: run.every > 0):
        if is_equal:
            lengths = chain.from_iterable(_equal(*run) for run in runs)
            windows = _windows(lengths, read_at, at)
        else:
            windows = _by_content(sum(run.length for run in runs), read_at, at)
        for window in windows:
            at += len(window.data)
            yield window


def sample(layout: Layout, read_at: ReadAt) -> Iterator[bytes | memoryview]:
    """A few parts of a file, of those that can be told without reading what is before them: at most one MiB or so each.

    From all over it where it has a structure, otherwise from its beginning.
    """
    begins: list[tuple[int, int]] = []
    at = 0
    for run in layout.runs:
        if run.every and run.length >= SMALL_BYTES:  # a header differs in each version
            begins.append((at, next(_equal(*run))))
        at += run.length
    for begin, length in begins[:: len(begins) // _SAMPLES + 1]:
        yield read_at(begin, length)
    if not begins:
        first = next(cut(layout, read_at))
        at = 0
        for length in first.lengths:
            yield first.data[at : at + length]
            at += length


# --- from pieces to parts ---


def _runs(pieces: Iterable[int]) -> Iterator[Run]:
    small = 0
    for piece in pieces:
        if piece < SMALL_BYTES:
            small += piece
        else:
            yield from _loose(small)
            small = 0
            yield Run(piece, PIECE_BYTES)
    yield from _loose(small)


def _loose(length: int) -> Iterator[Run]:
    """Many small pieces that lie side by side."""
    if length:
        is_one = length <= SMALL_BYTES or not splits_by_content()
        yield Run(length, CUT_BYTES if is_one else 0)


def _equal(length: int, every: int) -> Iterator[int]:
    """A cut at equal distances; a rest below 64 KiB stays with the part before it."""
    while length >= every + SMALL_BYTES:
        yield every
        length -= every
    if length:
        yield length


def _windows(lengths: Iterable[int], read_at: ReadAt, at: int) -> Iterator[Window]:
    group: list[int] = []
    size = 0
    for length in lengths:
        if group and size + length > WINDOW_BYTES:
            yield Window(memoryview(read_at(at, size)), group)
            at += size
            group, size = [], 0
        group.append(length)
        size += length
    if group:
        yield Window(memoryview(read_at(at, size)), group)


def _by_content(length: int, read_at: ReadAt, at: int) -> Iterator[Window]:
    average, _ = _average(length)
    cutter = _cutter(average)
    end = at + length
    window_bytes = max(WINDOW_BYTES, 16 * average)
    while at < end:
        data = memoryview(read_at(at, min(window_bytes, end - at)))
        lengths = [chunk.length for chunk in cutter.cut_buf(data)]
        # The last part may go on behind the window: it begins the next one.
        if at + len(data) < end and lengths[-1] < MAX_PART_BYTES:
            last = lengths.pop()
            if not lengths:
                window_bytes = min(2 * window_bytes, max(window_bytes, MAX_PART_BYTES))
                continue
            data = data[:-last]
        yield Window(data, lengths)
        at += len(data)


def _average(length: int) -> tuple[int, str]:
    return (64 * 1024, "64K") if length < _HUGE_BYTES else (1024 * 1024, "1M")


def _cutter(average: int) -> FastCDC:
    from pyfastcdc import FastCDC

    return FastCDC(
        average, min_size=average // 4, max_size=MAX_PART_BYTES, normalized_chunking=1, seed=0
    )


# --- safetensors: 8 bytes length of the header, the header as JSON, the tensors (huggingface/safetensors, README) ---


class _Tensor(msgspec.Struct, gc=False):
    # `__metadata__` is read as a tensor without offsets.
    data_offsets: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET


_decode_header = msgspec.json.Decoder(dict[str, _Tensor]).decode


def _safetensors(read_at: ReadAt, size_bytes: int) -> list[int] | None:
    """The lengths of header and tensors, or None unless they tile the file."""
    if size_bytes < 8:
        return None
    header_length = int.from_bytes(read_at(0, 8), "little")
    start = 8 + header_length
    if header_length > _MAX_HEADER_BYTES or start > size_bytes:
        return None
    try:
        tensors = _decode_header(read_at(8, header_length))
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
    return pieces if start + at == size_bytes else None


# --- zip: the directory at the end, never a member (PKWARE APPNOTE.TXT 6.3.10, section 4.3) ---

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_BLOCK_BYTES = 256 * 1024


def _zip_members(read_at: ReadAt, size_bytes: int) -> list[int] | None:
    """The lengths of members and of the gaps between them, or None unless they lie in order in the file."""
    file = _Blocks(read_at, size_bytes)
    try:
        directory, count = _zip_directory(file)
        pieces: list[int] = []
        at = 0
        for begin, end in sorted(_zip_ranges(file, directory, count)):
            if begin < at or end > size_bytes:
                return None
            pieces += (begin - at, end - begin)
            at = end
    except (struct.error, ValueError, OverflowError):
        return None
    pieces.append(size_bytes - at)
    return pieces


class _Blocks:
    """The bytes of a file, less at its end; what is read on and on, a block at a time."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at = read_at
        self.size_bytes = size_bytes
        self._begin = 0
        self._block: bytes | memoryview = b""

    def read(self, at: int, length: int) -> bytes | memoryview:
        if not 0 <= at <= self.size_bytes:
            raise ValueError("not inside the file")
        return self._read_at(at, min(length, self.size_bytes - at))

    def read_on(self, at: int, length: int) -> bytes | memoryview:
        """The same, of what is read from one end to the other."""
        if not self._begin <= at <= at + length <= self._begin + len(self._block):
            self._begin, self._block = at, self.read(at, max(length, _BLOCK_BYTES))
        return self._block[at - self._begin : at - self._begin + length]


def _zip_directory(file: _Blocks) -> tuple[int, int]:
    """Where the list of members starts, and how many there are; ValueError if there is none."""
    tail_start = max(0, file.size_bytes - _END.size - 0xFFFF)
    tail = bytes(file.read(tail_start, file.size_bytes - tail_start))
    found = tail.rfind(b"PK\5\6")
    if found < 0:
        raise ValueError("no end of a directory")
    at = tail_start + found
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, found)
    if count == 0xFFFF or 0xFFFFFFFF in (size, start):
        locator = file.read(at - _END64_LOCATOR.size, _END64_LOCATOR.size)
        magic, _, at64, _ = _END64_LOCATOR.unpack(locator)
        if magic != b"PK\6\7":
            raise ValueError("no 64-bit directory")
        fields = _END64.unpack(file.read(at64, _END64.size))
        magic, count, size, start = fields[0], *fields[7:]
        if magic != b"PK\6\6":
            raise ValueError("no 64-bit directory")
    if count > _MAX_MEMBERS or start + size > file.size_bytes:
        raise ValueError("a directory that does not fit")
    return start, count


def _zip_ranges(file: _Blocks, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Where the bytes of each member lie."""
    for _ in range(count):
        fields = _MEMBER.unpack(file.read_on(at, _MEMBER.size))
        magic, size, raw_size, local = fields[0], fields[8], fields[9], fields[16]
        name_length, extra_length, comment_length = fields[10:13]
        if magic != b"PK\1\2":
            raise ValueError("not a member")
        at += _MEMBER.size + name_length
        if 0xFFFFFFFF in (size, local):
            extra = file.read_on(at, extra_length)
            size, local = _zip_wide(extra, raw_size=raw_size, size=size, local=local)
        at += extra_length + comment_length
        head = _LOCAL.unpack(file.read(local, _LOCAL.size))
        if head[0] != b"PK\3\4":
            raise ValueError("no member where the directory says")
        begin = local + _LOCAL.size + head[9] + head[10]
        yield begin, begin + size


def _zip_wide(
    extra: bytes | memoryview, *, raw_size: int, size: int, local: int
) -> tuple[int, int]:
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
