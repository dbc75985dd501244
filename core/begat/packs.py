"""The format of packs, recipes and compressed blobs: many small pieces of bytes in one object.

A *pack* is the stored bytes of its blobs, one after the other from offset 0, then an index, then a footer:

    index     one MessagePack array of [digest, kind, offset, stored length, raw length, codec], by offset
    footer    length of the index (8 bytes, little-endian) | BLAKE3 of the index (32 bytes) | b"begatpk1"

The index holds all that the catalog knows of the blobs, so their places can be found again without it. The blobs tile
the pack: no gap, no overlap. A *recipe* tells how a large file is cut into parts; it is an ordinary blob:

    [1, digest of the file, its size in bytes, splitter, [[part digest, length], ...]]

Both are closed, like the manifest: another kind, codec, length or version is `FormatTooNew`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import (
    TYPE_CHECKING,
    Annotated,
    NamedTuple,
    NoReturn,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    overload,
)

import msgspec
from blake3 import blake3

from begat.errors import DigestMismatch, FormatTooNew, LimitExceeded, ManifestUnreadable
from begat.model import BlobKind, BlobLocation, Codec, Digest

if TYPE_CHECKING:
    import zstandard

    from begat.config import Compression

TARGET_BYTES = 64 * 1024 * 1024
MAX_BLOBS = 100_000
"""A pack is closed at whichever comes first, so that its index stays small beside it."""

MAX_PART_BYTES = 8 * 1024 * 1024
MAX_PARTS = 2_000_000
MAX_RECIPE_BYTES = 256 * 1024 * 1024
MAX_COMPRESSED_RAW_BYTES = 256 * 1024 * 1024
"""More than this is never compressed, so no stored size can make a reader allocate more."""

FOOTER_BYTES = 48
RECIPE_VERSION = 1
_MAGIC = b"begatpk1"
_MAX_INDEX_BYTES = MAX_BLOBS * 128
_PROBE_BYTES = 64 * 1024
_WORTHWHILE = 0.9  # a blob stored as it is can be read in ranges and sent without being decoded; 10 % is not worth that
_TRIES = 4  # so many blobs of one ending are tried in vain, and then one of so many:
_TRIED_AGAIN = 16
_MAX = 2**63 - 1
_DIGEST = re.compile(r"b3:[0-9a-f]{64}")
_SPLITTER = re.compile(r"[a-z0-9][A-Za-z0-9./_-]{0,63}")
_KINDS = frozenset(get_args(BlobKind))
_CODECS = frozenset(get_args(Codec))
Raw = TypeVar("Raw", bound=bytes | memoryview)
_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX)]


class _WireBlob(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    digest: str
    kind: str
    offset: _Size
    stored_length: _Size
    raw_length: _Size
    codec: str


class _WirePart(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    digest: str
    length: _Size


class _WireRecipe(msgspec.Struct, array_like=True, tag=RECIPE_VERSION, forbid_unknown_fields=True):
    file: str
    size_bytes: _Size
    splitter: str
    parts: list[_WirePart]


_encode = msgspec.msgpack.Encoder().encode
# What msgspec raises on arbitrary bytes: text that is not UTF-8 is a ValueError, deep nesting a RecursionError.
_UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
_decode_index = msgspec.msgpack.Decoder(list[_WireBlob]).decode
_decode_recipe = msgspec.msgpack.Decoder(_WireRecipe).decode


# --- packs ---


def encode_index(blobs: Iterable[BlobLocation]) -> bytes:
    """What follows the last blob of a pack: the index of these blobs, in the order of their offsets, and the footer."""
    rows = [
        (blob.digest, blob.kind, blob.offset, blob.stored_length, blob.raw_length, blob.codec)
        for blob in blobs
    ]
    if len(rows) > MAX_BLOBS:
        raise LimitExceeded(
            f"a pack may hold {MAX_BLOBS} blobs, not {len(rows)}; nothing was stored"
        )
    index = _encode(rows)
    return index + len(index).to_bytes(8, "little") + blake3(index).digest() + _MAGIC


def read_index(
    name: str, read_at: Callable[[int, int], bytes], *, size_bytes: int
) -> list[BlobLocation]:
    """The blobs of the pack `name`, which has `size_bytes` bytes; `read_at(offset, length)` reads from it.

    Raises `DigestMismatch` if the end of the object is not that of an undamaged pack, `FormatTooNew`.
    """
    if size_bytes < FOOTER_BYTES:
        _damaged(name, f"it has only {size_bytes} bytes")
    footer = read_at(size_bytes - FOOTER_BYTES, FOOTER_BYTES)
    length, digest, magic = int.from_bytes(footer[:8], "little"), footer[8:40], footer[40:]
    if magic != _MAGIC:
        if magic[:7] == _MAGIC[:7]:
            raise _too_new(f"the pack {name}", f"ends with {magic!r}")
        _damaged(name, "it does not end like a pack")
    if length > min(size_bytes - FOOTER_BYTES, _MAX_INDEX_BYTES):
        _damaged(name, f"its index would have {length} bytes")
    start = size_bytes - FOOTER_BYTES - length
    index = read_at(start, length)
    if len(index) != length or blake3(index).digest() != digest:
        _damaged(name, "its index does not have the recorded digest")
    return _checked_index(name, index, end=start)


def _checked_index(name: str, index: bytes, *, end: int) -> list[BlobLocation]:
    try:
        rows = _decode_index(index)
    except _UNDECODABLE as error:
        if _has_other_length(index, 6):
            raise _too_new(f"the pack {name}", "has longer lines in its index") from error
        _damaged(name, f"its index does not parse ({error})", error)
    if _encode(rows) != index:
        _damaged(name, "its index is not in canonical form")
    blobs: list[BlobLocation] = []
    at = 0
    for row in rows:
        if row.kind not in _KINDS or row.codec not in _CODECS:
            raise _too_new(f"the pack {name}", f"holds a {row.kind!r} blob in codec {row.codec!r}")
        if not _DIGEST.fullmatch(row.digest):
            _damaged(name, "its index holds a malformed digest")
        if row.offset != at or row.stored_length > end - at:
            _damaged(name, f"its blobs do not lie one after the other (at byte {at})")
        if row.codec == "none" and row.raw_length != row.stored_length:
            _damaged(name, f"a blob that is not compressed has two lengths (at byte {at})")
        at += row.stored_length
        blobs.append(
            BlobLocation(
                Digest(row.digest),
                name,
                row.offset,
                row.stored_length,
                row.raw_length,
                cast("Codec", row.codec),
                cast("BlobKind", row.kind),
            )
        )
    if at != end:
        _damaged(name, f"{end - at} of its bytes belong to no blob")
    return blobs


# --- recipes ---


class Part(NamedTuple):
    """One part of a large file; a tuple, since a file of 100 GiB has 100,000 of them."""

    digest: Digest
    length: int


class Recipe(msgspec.Struct, frozen=True):
    """How a file is made of parts, in order; `splitter` names how the cuts were found."""

    file: Digest
    size_bytes: int
    splitter: str
    parts: tuple[Part, ...]


def encode_recipe(recipe: Recipe) -> bytes:
    """The bytes of a recipe; its parts sum to the size of the file."""
    problem = _problem_of(recipe)
    if problem:
        raise LimitExceeded(f"the parts of a file cannot be listed: {problem}; nothing was stored")
    return _encode((RECIPE_VERSION, recipe.file, recipe.size_bytes, recipe.splitter, recipe.parts))


def decode_recipe(data: bytes) -> Recipe:
    """The recipe that these bytes are; `ManifestUnreadable` or `FormatTooNew` if they are none of ours.

    Whether it is the recipe of the file that was asked for, the caller compares.
    """
    if len(data) > MAX_RECIPE_BYTES:
        _no_recipe(f"it has {len(data)} bytes, the limit is {MAX_RECIPE_BYTES}")
    try:
        wire = _decode_recipe(data)
    except _UNDECODABLE as error:
        _explain_recipe(data, error)
    if _encode(wire) != data:
        _no_recipe("it is not in canonical form")
    parts = tuple(Part(Digest(part.digest), part.length) for part in wire.parts)
    recipe = Recipe(Digest(wire.file), wire.size_bytes, wire.splitter, parts)
    problem = _problem_of(recipe)
    if problem:
        _no_recipe(problem)
    return recipe


def _problem_of(recipe: Recipe) -> str | None:
    if not _DIGEST.fullmatch(recipe.file) or not _SPLITTER.fullmatch(recipe.splitter):
        return "its digest or splitter is malformed"
    if len(recipe.parts) > MAX_PARTS:
        return f"it has {len(recipe.parts)} parts, the limit is {MAX_PARTS}"
    total = 0
    for digest, length in recipe.parts:
        if not 1 <= length <= MAX_PART_BYTES or not _DIGEST.fullmatch(digest):
            return f"a part has a malformed digest or not 1 to {MAX_PART_BYTES} bytes"
        total += length
    if total != recipe.size_bytes:
        return f"its parts have {total} bytes together, the file has {recipe.size_bytes}"
    return None


def _explain_recipe(data: bytes, error: Exception) -> NoReturn:
    found = _plain(data)
    if isinstance(found, list) and found:
        items = cast("list[object]", found)
        version = items[0]
        if type(version) is int and (version > RECIPE_VERSION or len(items) != 5):
            raise _too_new("a recipe", f"has version {version} and {len(items)} values") from error
        if type(version) is int and len(items) == 5 and _items_have_other_length(items[4], 2):
            raise _too_new("a recipe", "has parts with more than a digest and a length") from error
    _no_recipe(f"it does not parse ({error})", error)


# --- compression ---


class Encoded(NamedTuple):
    """A blob as it is to be stored: compressed, if that is worth it."""

    digest: Digest
    raw_length: int
    stored: bytes | memoryview
    codec: Codec


class Compressor:
    """Compresses the blobs of one batch, one after the other, as `BEGAT_COMPRESSION` says.

    `auto` remembers by the ending of a name what did not shrink: images and weights are not tried again and again.
    """

    def __init__(self, how: Compression) -> None:
        self._how = how
        self._in_vain: dict[str, int] = {}

    def encode(self, digest: Digest, raw: bytes | memoryview, ending: str = "") -> Encoded:
        """A blob as it should be stored; `ending` is that of the name of its file."""
        stored, codec = self.compress(raw, ending)
        return Encoded(digest, len(raw), stored, codec)

    def compress(self, raw: Raw, ending: str) -> tuple[Raw | bytes, Codec]:
        """Bytes as they should be stored; `ending` is that of the name of their file."""
        if self._how == "off":
            return raw, "none"
        if self._how == "zstd":
            return compress(raw, probes=False)
        in_vain = self._in_vain.get(ending, 0)
        if in_vain >= _TRIES and in_vain % _TRIED_AGAIN:
            self._in_vain[ending] = in_vain + 1
            return raw, "none"
        stored, codec = compress(raw)
        self._in_vain[ending] = in_vain + 1 if codec == "none" else 0
        return stored, codec

    def is_for(self, read_at: Callable[[int, int], bytes | memoryview], size_bytes: int) -> bool:
        """Whether a large new file should go into packs, compressed, and not be kept as it is.

        `auto` says so if compression would probably save at least half of it. Less than that, such as the sixth of a
        parquet file, is not worth giving up an object that holds the file as it is.
        """
        if self._how == "off":
            return False
        most = 0.5 if self._how == "auto" else _WORTHWHILE
        return would_shrink(read_at, size_bytes, to=most)


def compress(raw: Raw, *, level: int = 1, probes: bool = True) -> tuple[Raw | bytes, Codec]:
    """Bytes as they should be stored: compressed, or as they are where that saves less than a tenth.

    The first 64 KiB decide (unless `probes` is False), so large incompressible bytes cost next to nothing.
    """
    size_bytes = len(raw)
    if size_bytes < 64 or size_bytes > MAX_COMPRESSED_RAW_BYTES:
        return raw, "none"
    compressor = _compressor(level)
    if probes and size_bytes > _PROBE_BYTES:
        probe = memoryview(raw)[:_PROBE_BYTES]
        if len(compressor.compress(probe)) >= _WORTHWHILE * _PROBE_BYTES:
            return raw, "none"
    stored = compressor.compress(raw)
    return (stored, "zstd") if len(stored) < _WORTHWHILE * size_bytes else (raw, "none")


def would_shrink(
    read_at: Callable[[int, int], bytes | memoryview], size_bytes: int, *, to: float
) -> bool:
    """Whether compression would probably leave at most so much of a large file: 64 KiB at three places decide."""
    compressor = _compressor(1)
    length = min(_PROBE_BYTES, size_bytes)
    last = size_bytes - length
    stored = sum(len(compressor.compress(read_at(at, length))) for at in (0, last // 2, last))
    return stored <= length * 3 * to


@overload
def decompress(stored: bytes, codec: Codec, *, raw_length: int) -> bytes: ...
@overload
def decompress(stored: memoryview, codec: Codec, *, raw_length: int) -> bytes | memoryview: ...
def decompress(stored: bytes | memoryview, codec: Codec, *, raw_length: int) -> bytes | memoryview:
    """The bytes that were stored, `raw_length` of them; never allocates more than that.

    Whether they are the right ones, only their digest tells. Raises `DigestMismatch` if they cannot be decoded.
    """
    if codec == "none":
        if len(stored) != raw_length:
            _undecodable(f"there are {len(stored)} of {raw_length} bytes")
        return stored
    if raw_length > MAX_COMPRESSED_RAW_BYTES:
        _undecodable(f"{raw_length} bytes are more than is ever compressed")
    import zstandard

    try:
        # The decoder allocates what the frame claims, so the claim is compared before it runs.
        if zstandard.frame_content_size(stored) != raw_length:
            _undecodable("the compressed bytes claim another length than the recorded one")
        raw = _decompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        _undecodable(f"the compressed bytes are damaged ({error})", error)
    if len(raw) != raw_length:
        _undecodable(f"{len(raw)} bytes came out where {raw_length} were recorded")
    return raw


# Coders keep memory of their own and serve one thread at a time.
_coders = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    made: dict[int, zstandard.ZstdCompressor] | None = getattr(_coders, "compressors", None)
    if made is None:
        made = _coders.compressors = {}
    if level not in made:
        import zstandard

        made[level] = zstandard.ZstdCompressor(level=level)
    return made[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    made: zstandard.ZstdDecompressor | None = getattr(_coders, "decompressor", None)
    if made is None:
        import zstandard

        made = _coders.decompressor = zstandard.ZstdDecompressor()
    return made


# --- what went wrong ---


def _plain(data: bytes) -> object:
    """What the bytes hold without regard to any rule, to tell a newer format from damage."""
    try:
        return msgspec.msgpack.decode(data)
    except _UNDECODABLE:
        return None


def _has_other_length(data: bytes, length: int) -> bool:
    return _items_have_other_length(_plain(data), length)


def _items_have_other_length(found: object, length: int) -> bool:
    rows = cast("list[object]", found) if isinstance(found, list) else []
    return any(isinstance(row, list) and len(cast("list[object]", row)) != length for row in rows)


def _damaged(name: str, problem: str, cause: Exception | None = None) -> NoReturn:
    raise DigestMismatch(
        f"the pack {name} is damaged: {problem}. Nothing of it was handed out; "
        "run `begat verify` to see which versions need it, and log their files again"
    ) from cause


def _undecodable(problem: str, cause: Exception | None = None) -> NoReturn:
    raise DigestMismatch(
        f"a blob cannot be decoded: {problem}. Nothing was handed out; "
        "run `begat verify` to see which versions need it, and log their files again"
    ) from cause


def _no_recipe(problem: str, cause: Exception | None = None) -> NoReturn:
    raise ManifestUnreadable(
        f"a recipe (the list of a large file's parts) cannot be read: {problem}. Nothing was handed out; "
        "run `begat verify` to see which versions need it, and log their files again"
    ) from cause


def _too_new(what: str, problem: str) -> FormatTooNew:
    return FormatTooNew(
        f"{what} was written by a newer begat: it {problem}. Nothing was changed; install a newer begat"
    )
