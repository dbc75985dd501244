"""A version's manifest as it lies in the store: read whole, or only the pages that can hold what is asked for.

The root names each page with its first path, so that the pages of a path or folder are found without the others. What
a partial read verifies is a chain: the catalog names the digest of the root, the root those of its pages, a page those
of its files. The content digest, and that no path lies under another entry, are of the manifest as a whole, and are
checked when all of it is read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from begat.blobs import BlobReader
from begat.errors import Corrupt, ManifestUnreadable
from begat.identity import Digest
from begat.manifest import Manifest, Root, assemble, decode_page, decode_root
from begat.model import Entry

# So many pages (of at most 16,384 entries each) stay in memory for the next question.
KEPT_PAGES = 8


def read_manifest(reader: BlobReader, root_digest: Digest) -> Manifest:
    """The manifest whose root has this digest, read back and verified."""
    return _read_all(reader, decode_root(reader.read(root_digest)))


class StoredManifest:
    """The manifest of one version in the store, of which no more is read than what is asked for needs."""

    def __init__(self, reader: Callable[[], BlobReader], root: Digest, content: Digest) -> None:
        self._reader = reader
        self._root_digest = root
        self._content = content
        self._root: Root | None = None
        self._first_paths: list[str] = []
        self._kept: OrderedDict[int, list[Entry]] = OrderedDict()
        self._all: Manifest | None = None

    def all(self) -> Manifest:
        """The whole manifest, every rule and every digest verified."""
        if self._all is None:
            self._all = _read_all(self._reader(), self._read_root())
            self._kept.clear()
        return self._all

    def find(self, path: str) -> Entry | None:
        """The entry with exactly this path, or None."""
        if self._is_read_whole():
            return self.all().find(path)
        entries = self._page(self._first_page(path))
        at = bisect_left(entries, path, key=_path_of)
        return entries[at] if at < len(entries) and entries[at].path == path else None

    def starting_with(self, prefixes: Iterable[str]) -> Iterator[Entry]:
        """The entries whose paths begin with one of these texts, in the order of their paths; "" means all."""
        wanted = _shortest(prefixes)
        if wanted == [""] or self._is_read_whole():
            ordered = self.all().entries
            yield from (entry for entry in ordered if entry.path.startswith(tuple(wanted)))
            return
        for prefix in wanted:
            for entries in self._pages(prefix):
                for entry in entries[bisect_left(entries, prefix, key=_path_of) :]:
                    if not entry.path.startswith(prefix):
                        break
                    yield entry

    def _is_read_whole(self) -> bool:
        # What is one page is read whole anyway, and checked as a whole.
        return self._all is not None or len(self._read_root().pages) <= 1

    def _read_root(self) -> Root:
        if self._root is None:
            root = decode_root(self._reader().read(self._root_digest))
            if root.content_digest != self._content:
                raise Corrupt("its manifest is another one than was committed; run begat verify")
            self._first_paths = [page.first_path for page in root.pages]
            if any(a >= b for a, b in pairwise(self._first_paths)):
                raise ManifestUnreadable(
                    "a manifest cannot be read: its root names its pages out of order. Nothing was handed out; "
                    "run `begat verify` to see what is damaged"
                )
            self._root = root
        return self._root

    def _pages(self, prefix: str) -> Iterator[list[Entry]]:
        """The pages that can hold paths that begin with a text, in order."""
        count = len(self._first_paths)
        number = self._first_page(prefix)
        yield self._page(number)
        while (number := number + 1) < count and self._first_paths[number].startswith(prefix):
            yield self._page(number)

    def _first_page(self, path: str) -> int:
        """The page in which a path is, if it is in any: the last one that begins at or before it."""
        return max(bisect_right(self._first_paths, path) - 1, 0)

    def _page(self, number: int) -> list[Entry]:
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        refs = self._read_root().pages
        ref = refs[number]
        entries = decode_page(self._reader().read(ref.digest))
        is_last = number + 1 == len(refs)
        if (
            len(entries) != ref.entry_count
            or entries[0].path != ref.first_path
            or (not is_last and entries[-1].path >= refs[number + 1].first_path)
        ):
            raise ManifestUnreadable(
                f"a manifest cannot be read: page {number + 1} is not the one that its root names. Nothing was "
                "handed out; run `begat verify` to see what is damaged"
            )
        self._kept[number] = entries
        while len(self._kept) > KEPT_PAGES:
            self._kept.popitem(last=False)
        return entries


def _read_all(reader: BlobReader, root: Root) -> Manifest:
    reader.prefetch(page.digest for page in root.pages)
    return assemble(root, (reader.read(page.digest) for page in root.pages))


def _shortest(prefixes: Iterable[str]) -> list[str]:
    """The texts without those that begin with another one: so no path is named twice."""
    found: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return found


def _path_of(entry: Entry) -> str:
    return entry.path
