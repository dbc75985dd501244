"""What is in one version: its entries, of which no more is read than asked for, and the bytes of its files."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from msgspec.structs import replace

from begat.errors import BadPath, Corrupt, StoreUnavailable
from begat.model import Entry, StoredFile, VersionRecord
from begat.progress import reporting

# What reads content is imported where it is called: who logs, or looks up a name, does not.
if TYPE_CHECKING:
    from begat.checkout import Link, Overwrite
    from begat.ignore import Globs
    from begat.pages import StoredManifest
    from begat.verify import Damage
    from begat.version import Home


class Content:
    """The entries of one version, and the bytes of its files, for as long as these are kept.

    Each question asks the catalog first. So all ways of reading say the same of a version that was deleted, whatever is
    in memory, in the cache or shared with other versions.
    """

    __slots__ = ("_entries", "_home", "_manifest", "_record")

    def __init__(self, home: Home, record: VersionRecord) -> None:
        self._home = home
        self._record = record
        self._manifest: StoredManifest | None = None
        self._entries: tuple[Entry, ...] | None = None

    def check(self) -> VersionRecord:
        """The version as it is now; `VersionDeleted` or `BytesRetired` if its bytes are not kept."""
        return self._home.catalog.versions.get_with_bytes(self._record.uid)

    # --- entries ---

    def entries(self) -> tuple[Entry, ...]:
        """All entries by path, each with its metadata."""
        with self._named():
            manifest = self._kept_manifest()
            if self._entries is None:
                self._entries = self._with_metadata(manifest.all().entries)
        return self._entries

    def chosen(self, globs: Globs) -> tuple[Entry, ...]:
        """The entries that globs choose; of a large version only the pages that can hold them are read."""
        from begat.ignore import matcher

        chosen = matcher(globs)
        if self._entries is not None or "" in chosen.prefixes:
            return tuple(entry for entry in self.entries() if chosen.is_chosen(entry.path))
        with self._named():
            near = self._kept_manifest().starting_with(chosen.prefixes)
            found = tuple(entry for entry in near if chosen.is_chosen(entry.path))
        return self._with_metadata(found)

    def below(self, path: str) -> tuple[Entry, ...]:
        """The entry with this path, or all entries in this folder."""
        with self._named():
            manifest = self._kept_manifest()
            itself = manifest.find(path)
            found = tuple(manifest.starting_with([f"{path}/"])) if itself is None else (itself,)
        return self._with_metadata(found)

    # --- bytes ---

    def folder(self) -> Path:
        """The folder of the cache with all stored files, verified."""
        self.check()
        with self._named():
            return self._home.cache.folder(
                self._record.digest, self.entries, self._record.ref, reader=self._home.reader
            )

    def open(self, path: str) -> IO[bytes]:
        """One file, open; out of the cached folder if the store does not have its bytes and that folder is intact."""
        from begat.blobs import open_stored

        entry = self._file(path)
        try:
            return open_stored(
                self._home.reader(), entry.digest, entry.size_bytes, around=self._named
            )
        except (Corrupt, StoreUnavailable):
            folder = self._home.cache.intact(self._record.digest)
            if folder is None:
                raise
            return open(folder / path, "rb")

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of one file in pieces, each verified before it is given."""
        entry = self._file(path)
        with self._named():
            yield from self._home.reader().stream(entry.digest, entry.size_bytes)

    def write(
        self,
        entries: Sequence[Entry],
        folder: Path,
        *,
        overwrite: Overwrite,
        remote: bool,
        link: Link | None,
    ) -> None:
        """Write entries of the version below a folder, verified, at whatever paths these have now."""
        from begat.checkout import checkout

        total = sum(entry.size_bytes or 0 for entry in entries)
        ref, reader = self._record.ref, self._home.reader()
        with self._named(), reporting(f"getting {ref}", total, total_files=len(entries)):
            checkout(entries, folder, reader, overwrite=overwrite, remote=remote, link=link)

    def verify(self) -> tuple[Damage, ...]:
        """Read all bytes; what is damaged."""
        from begat.verify import verify_version

        record = self.check()
        with self._named():
            damaged = verify_version(record, self._home.reader())
        if damaged:
            self.check()  # what was deleted, and collected, meanwhile is no damage
        return damaged

    # --- inside ---

    def _kept_manifest(self) -> StoredManifest:
        from begat.pages import StoredManifest

        self.check()
        if self._manifest is None:
            record = self._record
            self._manifest = StoredManifest(self._home.reader, record.root, record.digest)
        return self._manifest

    def _file(self, path: str) -> StoredFile:
        with self._named():
            entry = self._kept_manifest().find(path)
        if isinstance(entry, StoredFile):
            return entry
        kind = {
            None: "is a folder, not a file," if self.below(path) else "is not",
            "remote": "is a remote asset, not a stored file",
            "symlink": "is a link, not a file",
        }
        what = kind.get(entry.kind if entry else None, "is a folder, not a file")
        ref = self._record.ref
        raise BadPath(f"{path!r} {what} in {ref}; begat ls {ref} lists what is there")

    def _with_metadata(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        notes = self._home.catalog.versions.entry_metadata(self._record.uid)
        if not notes:
            return entries
        get = notes.get
        return tuple(replace(e, metadata=get(e.path)) if e.path in notes else e for e in entries)

    @contextmanager
    def _named(self) -> Generator[None]:
        """Errors about stored bytes leave the block with the version's name in front, or as what became of it."""
        try:
            yield
        except Corrupt as error:
            self.check()  # it may have been deleted, and its bytes collected, since it was asked
            if error.message.startswith(self._record.ref):
                raise
            raise type(error)(f"{self._record.ref}: {error.message}") from error
