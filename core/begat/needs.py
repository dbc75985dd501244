"""Which blobs versions rely on, read from their manifests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from begat.blobs import SMALL_FILE_BYTES, BlobReader, recipes_around
from begat.errors import Corrupt, FormatTooNew
from begat.identity import Digest
from begat.manifest import PageRef, decode_page, decode_root
from begat.model import BlobLocation, StoredFile, VersionRecord
from begat.objects import ObjectStore, names_for
from begat.packs import decode_recipe
from begat.pages import read_manifest
from begat.record import decode_record

if TYPE_CHECKING:
    from begat.catalog import Catalog

# How many versions are looked up at a time.
BATCH = 256


def blobs_of(
    root: Digest, record: Digest | None, catalog: Catalog, reader: BlobReader
) -> Iterator[Digest]:
    """All blobs that a version relies on: root, pages, record, recipes, parts, whole files; `Corrupt`."""
    yield root
    yield from (page.digest for page in decode_root(reader.read(root)).pages)
    yield from _blobs_of_record(record, reader)
    files = [e for e in read_manifest(reader, root).entries if isinstance(e, StoredFile)]
    yield from (file.digest for file in files)
    yield from _blobs_of_recipes([file.digest for file in files], catalog, reader)


def _blobs_of_record(record: Digest | None, reader: BlobReader) -> Iterator[Digest]:
    if record is not None:
        yield record
        facts = decode_record(reader.read(record)).run_facts
        if facts is not None:
            yield facts


def _blobs_of_recipes(
    files: Sequence[Digest], catalog: Catalog, reader: BlobReader
) -> Iterator[Digest]:
    for record in catalog.bytes.recipes(files).values():
        yield record.recipe
        recipe = reader.recipe(record.file)
        if recipe is not None:
            parts = {part for part, _ in recipe.parts}
            yield from parts
            yield from recipes_around(
                catalog.bytes.readable_locations(parts).values(), catalog.bytes
            )


class Needed:
    """The blobs that some versions need, as 64 bits of each digest: what only seems to be needed is merely kept.

    A page that versions share is read once, so a store of many similar versions costs little more than one of them.
    """

    def __init__(self, catalog: Catalog, objects: ObjectStore) -> None:
        self._catalog = catalog
        self._reader = BlobReader(objects, catalog.bytes, is_read_only=True)
        self._marks: set[int] = set()
        self._seen: set[Digest] = set()
        self.unreadable: set[str] = set()
        """Versions (uids) whose needs cannot be read: of what they hold, nothing is known to be dead."""

    def __contains__(self, digest: Digest) -> bool:
        return _mark(digest) in self._marks

    def is_needed(self, blob: BlobLocation) -> bool:
        """Whether a blob is needed: also a recipe of a file that lies in one piece in an object that is kept.

        A version may need a part in there, without the file; a rebuild finds it by the recipe only that has the part,
        which need not be the one that the file has now.
        """
        if blob.digest in self:
            return True
        if blob.kind != "recipe":
            return False
        try:
            file = decode_recipe(self._reader.read(blob.digest)).file
        except (Corrupt, FormatTooNew):
            return True
        finally:
            self._reader.forget()
        return self._catalog.bytes.is_any_held(names_for(file))

    def add(self, versions: Sequence[VersionRecord]) -> None:
        """Take in what these versions need."""
        for start in range(0, len(versions), BATCH):
            batch = versions[start : start + BATCH]
            records = self._catalog.versions.records_of([version.uid for version in batch])
            self._reader.prefetch([version.root for version in batch])
            self._reader.prefetch(filter(None, records.values()))
            pages = self._unseen_pages(batch)
            self._reader.prefetch(page.digest for new in pages.values() for page in new)
            for version in batch:
                try:
                    self._add(version.root, records.get(version.uid), pages.get(version.root, []))
                except Corrupt:
                    self.unreadable.add(version.uid)
            self._reader.forget()

    def follow_recipes(self) -> bool:
        """Take in the recipes that files were given since, by which they are read now; False if one is unreadable."""
        for file, recipe in self._catalog.bytes.all_recipes():
            if file in self and recipe not in self:
                try:
                    blobs = list(_blobs_of_recipes([file], self._catalog, self._reader))
                except Corrupt:
                    return False
                self._marks.update(map(_mark, blobs))
                self._reader.forget()
        return True

    def _unseen_pages(self, versions: Sequence[VersionRecord]) -> dict[Digest, list[PageRef]]:
        """The pages of versions that were not read so far, by root; no root that was, or cannot be, read."""
        found: dict[Digest, list[PageRef]] = {}
        for root in dict.fromkeys(version.root for version in versions):
            if root not in self._seen:
                with contextlib.suppress(Corrupt):
                    pages = decode_root(self._reader.read(root)).pages
                    found[root] = [page for page in pages if page.digest not in self._seen]
        return found

    def _add(self, root: Digest, record: Digest | None, pages: Sequence[PageRef]) -> None:
        if root not in self._seen:
            if not pages:
                pages = decode_root(self._reader.read(root)).pages
            for page in pages:
                if page.digest not in self._seen:
                    self._add_page(page)
            self._marks.add(_mark(root))
            self._seen.add(root)  # last: below what was seen all is marked
        self._marks.update(map(_mark, _blobs_of_record(record, self._reader)))

    def _add_page(self, page: PageRef) -> None:
        entries = decode_page(self._reader.read(page.digest))
        files = [entry for entry in entries if isinstance(entry, StoredFile)]
        self._marks.update(_mark(file.digest) for file in files)
        large = [file.digest for file in files if file.size_bytes >= SMALL_FILE_BYTES]
        if large:
            self._marks.update(map(_mark, _blobs_of_recipes(large, self._catalog, self._reader)))
        self._marks.add(_mark(page.digest))
        self._seen.add(page.digest)


def _mark(digest: Digest) -> int:
    return int(digest[3:19], 16)
