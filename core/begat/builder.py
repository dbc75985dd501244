"""A manifest that is written while its entries come, in order of their paths: they are never all held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from blake3 import blake3

from begat.errors import BadPath, LimitExceeded
from begat.identity import Digest
from begat.manifest import (
    CONTEXT,
    MAX_ENTRIES,
    MAX_PAGE_ENTRIES,
    MAX_SIZE_BYTES,
    PageRef,
    check_values,
    encode_page,
    encode_root_of,
    without_header,
)
from begat.model import Entry, Json, RemoteAsset, StoredFile


class Built(msgspec.Struct, frozen=True):
    """A manifest whose pages were handed on, and the bytes of its root."""

    digest: Digest
    root: bytes
    pages: tuple[PageRef, ...]
    size_bytes: int
    file_count: int
    entry_metadata: Mapping[str, Mapping[str, Json]]


class ManifestBuilder:
    """Takes entries in order of their paths, hands on each page when it is full, and gives the root at the end.

    What it comes to is what `Manifest.of`, `pages` and `encode_root` give for the same entries, and the same rules are
    checked.
    """

    def __init__(self, page: Callable[[bytes], object]) -> None:
        self._page = page
        self._hasher = blake3(derive_key_context=CONTEXT)
        self._waiting: list[Entry] = []
        self._refs: list[PageRef] = []
        self._size_bytes = 0
        self._file_count = 0
        self._count = 0
        self._entry_metadata: dict[str, Mapping[str, Json]] = {}
        # The last path, and those before it that may yet turn out to be folders: each is the beginning of the next.
        self._above: list[str] = []

    def add(self, entries: Iterable[Entry]) -> None:
        """The next entries; `BadPath` or another `BadInput` if one may not stand here."""
        waiting = self._waiting
        for entry in entries:
            path = entry.path
            self._check_order(path)
            # A page starts where its first path says so: see `manifest.pages`.
            low = blake3(path.encode()).digest(length=2)
            if waiting and ((not low[0] and not low[1] & 0x0F) or len(waiting) == MAX_PAGE_ENTRIES):
                self._finish_page()
                waiting = self._waiting
            waiting.append(entry)
            if entry.metadata:
                self._entry_metadata[path] = dict(entry.metadata)

    def finish(self) -> Built:
        """The whole: its content digest, and the bytes of its root."""
        self._finish_page()
        digest = Digest(f"b3:{self._hasher.hexdigest()}")
        root = encode_root_of(digest, self._count, self._size_bytes, self._refs)
        return Built(
            digest,
            root,
            tuple(self._refs),
            self._size_bytes,
            self._file_count,
            self._entry_metadata,
        )

    def _check_order(self, path: str) -> None:
        above = self._above
        if above and above[-1] >= path:
            raise BadPath(f"the path {path!r} stands twice or out of order; nothing was stored")
        # All that begins with `a` comes together, and in it all that lies under `a`.
        while above and not path.startswith(above[-1]):
            above.pop()
        if above and path[len(above[-1])] == "/":
            raise BadPath(
                f"{path!r} lies under {above[-1]!r}, which is an entry itself; nothing was stored"
            )
        above.append(path)

    def _finish_page(self) -> None:
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        check_values(entries)
        self._count += len(entries)
        self._size_bytes += sum(entry.size_bytes or 0 for entry in entries)
        self._file_count += sum(isinstance(entry, StoredFile | RemoteAsset) for entry in entries)
        self._check_limits()
        for ref, data in encode_page(entries):
            self._hasher.update(without_header(data, ref.entry_count))
            self._refs.append(ref)
            self._page(data)

    def _check_limits(self) -> None:
        if self._count > MAX_ENTRIES:
            raise LimitExceeded(
                f"a version may have {MAX_ENTRIES} entries, this one has more; nothing was stored"
            )
        if self._size_bytes > MAX_SIZE_BYTES:
            raise LimitExceeded(
                f"all files together have more than {MAX_SIZE_BYTES} bytes; nothing was stored"
            )
