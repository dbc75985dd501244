"""A manifest: all entries of a version, as a set with rules and as canonical bytes.

*Canonical bytes* of an entry: one fixed-length MessagePack array, smallest form of every value.

    stored file      [0, path, size in bytes, digest "b3:<64 hex>", executable true|false]
    symbolic link    [1, path, target]
    empty directory  [2, path]
    remote asset     [3, path, uri, size in bytes|nil, pin|nil]

The content digest of a version is BLAKE3 in key-derivation mode, context `begat manifest v1`, over these bytes in the
order of the paths as UTF-8. How and where the bytes of the files are stored is not inside, nor is metadata.

*As stored*: pages, each one MessagePack array of entries, and a root that lists them:

    [1, content digest, number of entries, size in bytes, [[page digest, first path, number of entries], ...]]

v1 is closed: another kind, length or version is `FormatTooNew`. Bytes that are not exactly what this module would
write are `ManifestUnreadable`. A manifest that is read is input like any other: all rules are checked again.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import re
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from typing import Annotated, Any, NoReturn, TypeAlias, cast

import msgspec
from blake3 import blake3

from begat import paths
from begat.errors import BadInput, BadPath, FormatTooNew, LimitExceeded, ManifestUnreadable
from begat.model import Digest, EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink

VERSION = 1
CONTEXT = "begat manifest v1"
MAX_PAGE_ENTRIES = 16_384
MAX_PAGE_BYTES = 64 * 1024 * 1024
MAX_ROOT_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 100_000_000
MAX_SIZE_BYTES = 2**63 - 1  # what the catalog's integers hold
MAX_URI_LENGTH = 16_384
MAX_PIN_LENGTH = 1024

_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)]
_DIGEST = re.compile(r"b3:[0-9a-f]{64}")
# Nearly every path is plain like this, and one match over a whole page costs a tenth of checking each path.
_PLAIN = re.compile(r"(?:\w[\w.-]{0,99}(?:/\w[\w.-]{0,99}){0,7}+\n)*+", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


# --- the wire: what MessagePack sees ---


class _Stored(msgspec.Struct, array_like=True, tag=0, forbid_unknown_fields=True, gc=False):
    path: str
    size_bytes: _Size
    digest: str
    is_executable: bool


class _Link(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True, gc=False):
    path: str
    target: str


class _Folder(msgspec.Struct, array_like=True, tag=2, forbid_unknown_fields=True, gc=False):
    path: str


class _Remote(msgspec.Struct, array_like=True, tag=3, forbid_unknown_fields=True, gc=False):
    path: str
    uri: str
    size_bytes: _Size | None
    pin: str | None


_Wire: TypeAlias = _Stored | _Link | _Folder | _Remote
_LENGTHS = {0: 5, 1: 3, 2: 2, 3: 5}


class _WirePage(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: str
    first_path: str
    entry_count: _Size


class _WireRoot(msgspec.Struct, array_like=True, tag=VERSION, forbid_unknown_fields=True):
    content_digest: str
    entry_count: _Size
    size_bytes: _Size
    pages: list[_WirePage]


_encode = msgspec.msgpack.Encoder().encode
# What msgspec raises on arbitrary bytes: text that is not UTF-8 is a ValueError, deep nesting a RecursionError.
_UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
_decode_entries = msgspec.msgpack.Decoder(list[_Wire]).decode
_decode_root = msgspec.msgpack.Decoder(_WireRoot).decode


# --- the manifest ---


class Manifest(msgspec.Struct, frozen=True, dict=True):
    """The entries of a version, sorted by path; make one with `Manifest.of`, which checks the rules."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """Entries in any order -> a manifest.

        Paths are unique; nothing lies under an entry (an entry is a leaf: a file, a link, an empty directory); paths
        and links pass `begat.paths`. So no link leaves the version, also where it leads through other links: the
        folders above it are no links, `..` climbs these only, and each name after that leads on to such a link.

        Raises `BadPath` naming the path, `BadInput` for other values, `LimitExceeded` above 100 million entries.
        """
        ordered = tuple(sorted(entries, key=_path_of))
        check_values(ordered)
        _check_set(ordered)
        return cls(ordered)

    @cached_property
    def digest(self) -> Digest:
        """The content identity: equal entries have equal digests, whoever stored them and how."""
        hasher = blake3(derive_key_context=CONTEXT)
        for start in range(0, len(self.entries), MAX_PAGE_ENTRIES):
            rows = [_row(entry) for entry in self.entries[start : start + MAX_PAGE_ENTRIES]]
            hasher.update(without_header(_encode(rows), len(rows)))
        return Digest(f"b3:{hasher.hexdigest()}")

    @cached_property
    def size_bytes(self) -> int:
        """The bytes of all stored files, and of the remote ones whose size is known."""
        return sum(entry.size_bytes or 0 for entry in self.entries)

    @cached_property
    def file_count(self) -> int:
        """How many entries are files, stored or remote."""
        return sum(isinstance(entry, StoredFile | RemoteAsset) for entry in self.entries)

    def find(self, path: str) -> Entry | None:
        """The entry with exactly this path, or None."""
        return _find(self.entries, path)


# --- as stored: pages and a root ---


class PageRef(msgspec.Struct, frozen=True):
    """One page as the root names it; `digest` is the plain BLAKE3 of the page's bytes."""

    digest: Digest
    first_path: str
    entry_count: int


class Root(msgspec.Struct, frozen=True):
    """What stands above the pages of a stored manifest."""

    content_digest: Digest
    entry_count: int
    size_bytes: int
    pages: tuple[PageRef, ...]


def pages(manifest: Manifest) -> Iterator[tuple[PageRef, bytes]]:
    """The pages of a manifest in order, each with its reference for the root.

    A page starts where the low 12 bits of BLAKE3(path), read as a little-endian number, are 0, so a change moves no
    cut but its own; and after 16,384 entries at the latest.
    """
    start = 0
    for at, entry in enumerate(manifest.entries):
        low = blake3(entry.path.encode()).digest(length=2)
        is_cut = not low[0] and not low[1] & 0x0F
        if at > start and (is_cut or at - start >= MAX_PAGE_ENTRIES):
            yield from encode_page(manifest.entries[start:at])
            start = at
    if start < len(manifest.entries):
        yield from encode_page(manifest.entries[start:])


def encode_root(manifest: Manifest, page_refs: Sequence[PageRef]) -> bytes:
    """The bytes of the root above these pages, which are all the pages of the manifest in order."""
    return encode_root_of(manifest.digest, len(manifest.entries), manifest.size_bytes, page_refs)


def encode_root_of(
    digest: Digest, entry_count: int, size_bytes: int, page_refs: Sequence[PageRef]
) -> bytes:
    """The bytes of the root of a manifest with this digest, of which these are all the pages."""
    rows = [(ref.digest, ref.first_path, ref.entry_count) for ref in page_refs]
    return _encode((VERSION, digest, entry_count, size_bytes, rows))


def decode_root(data: bytes) -> Root:
    """The root that these bytes are; `ManifestUnreadable` or `FormatTooNew` if they are none of ours."""
    if len(data) > MAX_ROOT_BYTES:
        _unreadable(f"its root has {len(data)} bytes, the limit is {MAX_ROOT_BYTES}")
    try:
        wire = _decode_root(data)
    except _UNDECODABLE as error:
        _explain(data, "its root", error)
    if _encode(wire) != data:
        _unreadable("its root is not in canonical form")
    refs = tuple(
        PageRef(Digest(page.digest), page.first_path, page.entry_count) for page in wire.pages
    )
    digests = [wire.content_digest, *(ref.digest for ref in refs)]
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        _unreadable("its root holds a malformed digest")
    if not all(1 <= ref.entry_count <= MAX_PAGE_ENTRIES for ref in refs):
        _unreadable(f"its root names a page that has not 1 to {MAX_PAGE_ENTRIES} entries")
    if sum(ref.entry_count for ref in refs) != wire.entry_count or wire.entry_count > MAX_ENTRIES:
        _unreadable("its root and its list of pages differ in the number of entries")
    return Root(Digest(wire.content_digest), wire.entry_count, wire.size_bytes, refs)


def decode_page(data: bytes) -> list[Entry]:
    """The entries of one page, in order of their paths; each path is checked, the set as a whole is not.

    Raises `ManifestUnreadable` or `FormatTooNew`.
    """
    wires = _decode_page_wires(data)
    try:
        return [_entry(wire) for wire in wires]
    except BadInput as error:
        _unreadable(error.message, error)


def assemble(root: Root, page_bytes: Iterable[bytes]) -> Manifest:
    """The manifest of a root and its pages, in the root's order; every rule and every digest is verified.

    Only the pages' own digests are left to whoever fetched them. Raises `ManifestUnreadable` or `FormatTooNew`.
    """
    with _without_collections():
        return _assembled(root, page_bytes)


def _assembled(root: Root, page_bytes: Iterable[bytes]) -> Manifest:
    hasher = blake3(derive_key_context=CONTEXT)
    entries: list[Entry] = []
    count = 0
    for data in page_bytes:
        if count == len(root.pages):
            _unreadable("there are more pages than its root names")
        ref = root.pages[count]
        found = decode_page(data)
        if len(found) != ref.entry_count or found[0].path != ref.first_path:
            _unreadable(f"page {count + 1} is not the one that its root names")
        hasher.update(without_header(data, len(found)))
        entries += found
        count += 1
    if count != len(root.pages):
        _unreadable(f"{len(root.pages) - count} of its {len(root.pages)} pages are missing")
    if hasher.hexdigest() != root.content_digest[3:]:
        _unreadable("its entries do not have the content digest that its root names")
    try:
        _check_set(entries)
    except BadInput as error:
        _unreadable(error.message, error)
    manifest = Manifest(tuple(entries))
    if manifest.size_bytes != root.size_bytes:
        _unreadable("its entries do not have the size that its root names")
    # Just computed from the same bytes; without this line the first use would encode all entries again.
    vars(manifest)["digest"] = root.content_digest
    return manifest


def encode_page(entries: Sequence[Entry]) -> Iterator[tuple[PageRef, bytes]]:
    """The bytes of a page with these entries, and what the root says of it; of two pages, if it would be too long."""
    data = _encode([_row(entry) for entry in entries])
    if len(data) > MAX_PAGE_BYTES:  # only with thousands of the longest URIs
        for half in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
            yield from encode_page(half)
        return
    digest = Digest(f"b3:{blake3(data).hexdigest()}")
    yield PageRef(digest, entries[0].path, len(entries)), data


def _row(entry: Entry) -> tuple[Any, ...]:
    if isinstance(entry, StoredFile):
        return 0, entry.path, entry.size_bytes, entry.digest, entry.is_executable
    if isinstance(entry, Symlink):
        return 1, entry.path, entry.target
    if isinstance(entry, EmptyDirectory):
        return 2, entry.path
    return 3, entry.path, entry.uri, entry.size_bytes, entry.pin


def without_header(data: bytes, count: int) -> memoryview:
    """The bytes of the entries alone: the header of an array takes 1 byte below 16 items, else 3."""
    return memoryview(data)[1 if count < 16 else 3 :]


# --- reading back ---


@contextlib.contextmanager
def _without_collections() -> Generator[None, None, None]:
    """Let the cycle collector rest: a million new entries hold no cycles, and looking for them takes half the time.

    Another thread's block may end first and switch it on again; that costs time only, and it never stays off.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decode_page_wires(data: bytes) -> list[_Wire]:
    if len(data) > MAX_PAGE_BYTES:
        _unreadable(f"a page has {len(data)} bytes, the limit is {MAX_PAGE_BYTES}")
    # The form of the header bounds the number of entries before any of them is made.
    if not data or not (0x91 <= data[0] <= 0x9F or data[0] == 0xDC):
        _unreadable("a page is not an array of entries")
    if data[0] == 0xDC and int.from_bytes(data[1:3], "big") > MAX_PAGE_ENTRIES:
        _unreadable(f"a page claims more than {MAX_PAGE_ENTRIES} entries")
    try:
        wires = _decode_entries(data)
    except _UNDECODABLE as error:
        _explain(data, "a page", error)
    if _encode(wires) != data:
        _unreadable("a page is not in canonical form")
    names = [wire.path for wire in wires]
    if not all(map(operator.lt, names, islice(names, 1, None))):
        _unreadable("the entries of a page are not in order")
    try:
        _check_paths(names)
    except BadPath as error:
        _unreadable(error.message, error)
    return wires


def _entry(wire: _Wire) -> Entry:
    if isinstance(wire, _Stored):
        if not _DIGEST.fullmatch(wire.digest):
            raise BadInput(f"the digest of {wire.path!r} is malformed")
        return StoredFile(wire.path, wire.size_bytes, Digest(wire.digest), wire.is_executable)
    if isinstance(wire, _Link):
        paths.check_symlink(wire.path, wire.target)
        return Symlink(wire.path, wire.target)
    if isinstance(wire, _Folder):
        return EmptyDirectory(wire.path)
    _check_remote(wire)
    return RemoteAsset(wire.path, wire.uri, wire.size_bytes, wire.pin)


def _explain(data: bytes, what: str, error: Exception) -> NoReturn:
    """Tell a newer format from damage, by what the bytes hold without regard to any rule."""
    try:
        found: object = msgspec.msgpack.decode(data)
    except _UNDECODABLE:
        found = None
    known = _LENGTHS if what == "a page" else {VERSION: 5}
    rows = cast("list[object]", found) if what == "a page" and isinstance(found, list) else [found]
    for row in cast("list[list[object]]", [row for row in rows if row and isinstance(row, list)]):
        head = row[0]
        if type(head) is int and (head > max(known) or len(row) != known.get(head, 0)):
            raise FormatTooNew(
                f"a manifest was written by a newer begat: {what} has {len(row)} values of kind {head}, "
                "which this one does not know. Nothing was changed; install a newer begat"
            ) from error
    _unreadable(f"{what} does not parse ({error})", error)


def _unreadable(problem: str, cause: Exception | None = None) -> NoReturn:
    raise ManifestUnreadable(
        f"a manifest cannot be read: {problem.removesuffix('; nothing was stored')}. "
        "Nothing was handed out; run `begat verify` to see what is damaged"
    ) from cause


# --- the rules ---


def check_values(entries: Sequence[Entry]) -> None:
    """Raise unless each entry alone may be stored."""
    for entry in entries:
        if isinstance(entry, StoredFile):
            # 1 instead of True would be other bytes, so another digest.
            if type(entry.size_bytes) is not int or type(entry.is_executable) is not bool:
                raise TypeError(f"size_bytes must be int and is_executable bool: {entry}")
            if not 0 <= entry.size_bytes <= MAX_SIZE_BYTES or not _DIGEST.fullmatch(entry.digest):
                raise _bad(
                    entry.path, f"no valid size and digest ({entry.size_bytes}, {entry.digest!r})"
                )
        elif isinstance(entry, Symlink):
            paths.check_symlink(entry.path, entry.target)
        elif isinstance(entry, RemoteAsset):
            if type(entry.size_bytes) is not int and entry.size_bytes is not None:
                raise TypeError(f"size_bytes must be int or None: {entry.path}")
            _check_remote(entry)
    for start in range(0, len(entries), MAX_PAGE_ENTRIES):
        _check_paths([entry.path for entry in entries[start : start + MAX_PAGE_ENTRIES]])


def _check_paths(names: list[str]) -> None:
    joined = "\n".join(names) + "\n"
    if joined.count("\n") == len(names) and _PLAIN.fullmatch(joined):
        return
    for name in names:
        paths.check_path(name)


def _check_remote(asset: RemoteAsset | _Remote) -> None:
    # The text itself is not in the message: a URI may hold a secret.
    if not 1 <= len(asset.uri) <= MAX_URI_LENGTH or _CONTROL.search(asset.uri):
        raise _bad(asset.path, f"no valid URI of 1 to {MAX_URI_LENGTH} plain characters")
    if asset.pin is not None:
        if not 1 <= len(asset.pin) <= MAX_PIN_LENGTH or _CONTROL.search(asset.pin):
            raise _bad(asset.path, f"no valid pin of 1 to {MAX_PIN_LENGTH} plain characters")
    if asset.size_bytes is not None and not 0 <= asset.size_bytes <= MAX_SIZE_BYTES:
        raise _bad(asset.path, f"no valid size ({asset.size_bytes})")


def _bad(path: str, problem: str) -> BadInput:
    return BadInput(f"{path!r} has {problem}; nothing was stored")


def _check_set(entries: Sequence[Entry]) -> None:
    """Raise `BadPath` unless sorted entries may stand together in one manifest."""
    if len(entries) > MAX_ENTRIES:
        raise LimitExceeded(
            f"a version may have {MAX_ENTRIES} entries, this one has {len(entries)}; nothing was stored"
        )
    names = [entry.path for entry in entries]
    # Order by code point is order by UTF-8 bytes, so text need not be encoded to be compared.
    if not all(map(operator.lt, names, islice(names, 1, None))):
        twice = next((b for a, b in pairwise(names) if a >= b), "")
        raise BadPath(f"the path {twice!r} stands twice or out of order; nothing was stored")
    _check_nothing_below(entries)
    if sum(entry.size_bytes or 0 for entry in entries) > MAX_SIZE_BYTES:
        raise LimitExceeded(
            f"all files together have more than {MAX_SIZE_BYTES} bytes; nothing was stored"
        )


def _check_nothing_below(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        folder = entry.path.rpartition("/")[0]
        while folder and folder not in seen:
            seen.add(folder)
            if _find(entries, folder) is not None:
                raise BadPath(
                    f"{entry.path!r} lies under {folder!r}, which is an entry itself; nothing was stored"
                )
            folder = folder.rpartition("/")[0]


def _find(entries: Sequence[Entry], path: str) -> Entry | None:
    at = bisect_left(entries, path, key=_path_of)
    if at < len(entries) and entries[at].path == path:
        return entries[at]
    return None


_path_of = operator.attrgetter("path")
