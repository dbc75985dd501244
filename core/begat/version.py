"""An immutable snapshot of files, with its labels and its place in the lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, overload

from begat import handed_out
from begat.artifact import Artifact
from begat.blobs import BlobReader
from begat.cache import Cache
from begat.content import Content
from begat.errors import BadPath
from begat.identity import Digest
from begat.model import Entry, Json, RemoteAsset, StoredFile, VersionRecord, VersionState
from begat.reference import check_alias, check_tag
from begat.wording import size_text

# What compares content is imported where it is called: who logs, or looks up a name, does not.
if TYPE_CHECKING:
    from begat.catalog import Catalog
    from begat.checkout import Link, Overwrite
    from begat.diff import Diff
    from begat.fingerprints import Fingerprint
    from begat.ignore import Globs
    from begat.run import Run
    from begat.verify import Damage


class Home(Protocol):
    """What versions and runs ask of the store that they came from."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def cache(self) -> Cache: ...

    @property
    def user(self) -> str: ...

    def reader(self) -> BlobReader: ...

    def get_run(self, id: str) -> Run: ...


class Version:
    """An immutable snapshot of files, with its labels and its place in the lineage.

    Name, number, digest, metadata and entries never change; labels and state are asked of the store each time.
    """

    __slots__ = ("_content", "_home", "_record", "is_new")

    def __init__(self, home: Home, record: VersionRecord, *, is_new: bool = False) -> None:
        self._home = home
        self._record = record
        self._content = Content(home, record)
        self.is_new = is_new

    # --- what it is ---

    @property
    def uid(self) -> str:
        """Its id: the same in every copy of the store."""
        return self._record.uid

    @property
    def ref(self) -> str:
        """`digits:v3`."""
        return self._record.ref

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self._record.name

    @property
    def type(self) -> str:
        """The artifact's type."""
        return self._record.type

    @property
    def number(self) -> int:
        """3 for `v3`."""
        return self._record.number

    @property
    def version(self) -> str | None:
        """Its SemVer label, if it has one."""
        return self._home.catalog.versions.get(self.uid).version

    @property
    def digest(self) -> Digest:
        """The content's identity: equal for equal files at equal paths, in any store."""
        return self._record.digest

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases that point here now; `latest` is among them where it is."""
        now = self._home.catalog.versions.get(self.uid)
        return (*now.aliases, "latest") if now.is_latest else now.aliases

    @property
    def tags(self) -> tuple[str, ...]:
        """Its own tags now, sorted."""
        return self._home.catalog.versions.get(self.uid).tags

    @property
    def description(self) -> str | None:
        """Its description now."""
        return self._home.catalog.versions.get(self.uid).description

    @property
    def state(self) -> VersionState:
        """live, retired (bytes may go), bytes-gone or deleted."""
        return self._home.catalog.versions.get(self.uid).state

    @property
    def metadata(self) -> Mapping[str, Json]:
        """What was given when it was logged; a copy, so changing it changes nothing here."""
        return deepcopy(self._record.metadata)

    @property
    def size_bytes(self) -> int:
        """Its logical bytes: those of all its files."""
        return self._record.size_bytes

    @property
    def new_bytes(self) -> int:
        """Bytes that storing it added to the store, compressed as they are, its manifest and record among them."""
        return self._record.new_bytes

    @property
    def shared_bytes(self) -> int:
        """Bytes of its files that needed no storing: any version of any artifact had them, or it has them twice."""
        return self._record.shared_bytes

    @property
    def file_count(self) -> int:
        """How many files it has, remote ones too."""
        return self._record.file_count

    @property
    def created_at(self) -> int:
        """When it was committed: microseconds since 1970 UTC, by the catalog's clock."""
        return self._record.created_at

    # --- where it comes from and where it went ---

    @property
    def produced_by(self) -> Run | None:
        """The run that made it, if a run did."""
        return None if self._record.run_uid is None else self._home.get_run(self._record.run_uid)

    @property
    def consumed_by(self) -> tuple[Run, ...]:
        """The runs that used it, oldest use first."""
        return self._runs("used")

    @property
    def confirmed_by(self) -> tuple[Run, ...]:
        """The runs that came to the same content while it was the latest."""
        return self._runs("confirmed")

    # --- what is in it ---

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries by path, each with its metadata."""
        return self._content.entries()

    def files(self, glob: str = "**") -> tuple[Entry, ...]:
        """The files (stored and remote) whose path fits a glob; `**` crosses folders, `*` does not."""
        return tuple(
            entry
            for entry in self._content.chosen(glob)
            if isinstance(entry, StoredFile | RemoteAsset)
        )

    def below(self, path: str) -> tuple[Entry, ...]:
        """The entry with this path, or all entries in this folder; only their pages of the manifest are read."""
        return self._content.below(path)

    @property
    def path(self) -> Path:
        """A read-only folder with its files, verified, in the user's cache; remote assets are not in it.

        The first call checks it out, later ones look at it with stat. It stays until this process ends, at least.
        """
        return self._handed_out(self._content.folder(), is_shared=False)

    @property
    def file(self) -> Path:
        """The path of the one file of a one-file version, in the cached folder; else `BadPath`."""
        self.check_bytes()
        files = self.files() if self.file_count == 1 else ()
        if len(files) != 1 or isinstance(files[0], RemoteAsset):
            raise BadPath(
                f"{self.ref} has {self.file_count} files, not one stored file; use .path and a name"
            )
        return self.path / files[0].path

    def open(self, path: str) -> IO[bytes]:
        """An open binary file, for reading while the store is open: only what is sought and read is fetched, verified.

        Without the store's bytes it is the file in the cached folder, if that is here and as it was verified.
        """
        return self._content.open(path)

    def read_bytes(self, path: str) -> bytes:
        """All bytes of one file, verified, straight from the store."""
        return b"".join(self.stream(path))

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of one file in pieces, each verified before it is given, straight from the store."""
        return self._content.stream(path)

    def download(
        self,
        dest: str | PathLike[str] | None = None,
        *,
        overwrite: Overwrite = "fail",
        include: Globs | None = None,
        remote: bool = False,
        link: Link | None = None,
    ) -> Path:
        """Write its files below `dest` (`./<name>-v<N>/`), verified, and return that folder.

        `fail` raises `DestinationDiffers` naming the first file that is there with other content, before anything is
        written; `preserve` keeps such files and warns; `overwrite` replaces each in one step. Files that are not in
        the version stay. `include` are globs; `remote=True` fetches remote assets, which must be what was pinned.
        `link="hard"` takes no room for large files that lie as they are in the store, in the same file system: they are
        read-only links of its objects. Write to none: that damages what is stored, which the next use finds out.
        """
        if overwrite not in ("fail", "preserve", "overwrite"):
            raise TypeError(f"overwrite is 'fail', 'preserve' or 'overwrite', not {overwrite!r}")
        target = (
            Path(dest)
            if dest is not None
            else Path(f"{self.name.replace('/', '-')}-v{self.number}")
        )
        if include is None:
            entries = self.entries
        else:
            globs = [include] if isinstance(include, str) else list(include)
            entries = self._content.chosen(globs)
            if not entries:
                raise BadPath(
                    f"no file of {self.ref} fits {' or '.join(map(repr, globs))}; begat ls {self.ref} lists them. "
                    "Nothing was written"
                )
        if link not in (None, "hard"):
            raise TypeError(f"link is 'hard' or None, not {link!r}")
        self.write(entries, target, overwrite=overwrite, remote=remote, link=link)
        return self._handed_out(target, is_shared=True)

    def draft(self) -> Artifact:
        """The next version, beginning as this one: change it and log it; unchanged files are not read or stored again.

        Type, metadata and description are taken over; aliases, tags and the SemVer label are not.
        """
        entries = self.entries
        draft = Artifact(self.name, self.type, metadata=self.metadata, description=self.description)
        draft.keep(entries)
        return draft

    def diff(self, other: Version) -> Diff:
        """What is different in `other`: added, removed, changed and renamed entries."""
        from begat.diff import diff

        return diff(self.entries, other.entries)

    def verify(self) -> tuple[Damage, ...]:
        """Read all its bytes again; what is damaged, named. Empty if all is as it was."""
        return self._content.verify()

    def recognize(self, obj: object, *, path: str = "") -> Fingerprint:
        """Say that this object is what the version holds, so that a training on it is detected; its fingerprint.

        `path` names the file that it was read from, where it is one of several. What has the same content is known
        from then on in every process; where the content cannot be known (see `how`), this very object is. In a
        read-only store only this process knows.
        """
        from begat.fingerprints import fingerprint
        from begat.fingerprints.stored import seen_of

        catalog = self._home.catalog
        found = fingerprint(obj)
        seen = seen_of(found, self.uid, path)
        if seen and not catalog.is_read_only:
            catalog.fingerprints.add_many(seen)
        handed_out.remember_object(
            obj, store_uid=catalog.store_uid, version_uid=self.uid, digest=found.digest
        )
        return found

    # --- labels ---

    def add_aliases(self, *aliases: str) -> None:
        """Move these aliases here."""
        for alias in [check_alias(alias) for alias in aliases]:
            self._home.catalog.labels.move_alias(self.uid, alias, by=self._home.user)

    def remove_aliases(self, *aliases: str) -> None:
        """Remove these aliases, if they point here."""
        for alias in [check_alias(alias) for alias in aliases]:
            self._home.catalog.labels.remove_alias(
                self.name, alias, expect=self.number, by=self._home.user
            )

    def add_tags(self, *tags: str) -> None:
        """Add tags to this version."""
        checked = [check_tag(tag) for tag in tags]
        self._home.catalog.labels.add_tags("version", self.uid, checked, by=self._home.user)

    def remove_tags(self, *tags: str) -> None:
        """Remove tags from this version; those it does not have are no error."""
        self._home.catalog.labels.remove_tags("version", self.uid, list(tags), by=self._home.user)

    def set_description(self, text: str | None) -> None:
        """Say in words what this version is."""
        self._home.catalog.labels.set_description("version", self.uid, text, by=self._home.user)

    def delete(self, *, force: bool = False) -> None:
        """Delete it: its place in the lineage stays, its number is never given again, its bytes go with the next gc.

        Refused while it has aliases (`AliasReserved`), unless `force`, which removes them.
        """
        self._home.catalog.labels.delete(self.uid, force=force, by=self._home.user)

    def check_bytes(self) -> None:
        """Raise `BytesRetired` or `VersionDeleted` if its bytes are gone; for begat's own parts."""
        self._content.check()

    def write(
        self,
        entries: Sequence[Entry],
        folder: Path,
        *,
        overwrite: Overwrite,
        remote: bool,
        link: Link | None,
    ) -> None:
        """Write entries of it below a folder, verified, at whatever paths these have now; for begat's own parts."""
        self._content.write(entries, folder, overwrite=overwrite, remote=remote, link=link)

    # --- inside ---

    def _handed_out(self, folder: Path, *, is_shared: bool) -> Path:
        home = self._home.catalog.store_uid
        handed_out.remember(folder, store_uid=home, version_uid=self.uid, is_shared=is_shared)
        return folder

    def _runs(self, kind: str) -> tuple[Run, ...]:
        edges = self._home.catalog.runs.edges_of_version(self.uid)
        uids = dict.fromkeys(edge.run_uid for edge in edges if edge.kind == kind)
        return tuple(self._home.get_run(uid) for uid in uids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and other.uid == self.uid

    def __hash__(self) -> int:
        return hash(self.uid)

    def __repr__(self) -> str:
        return (
            f"<begat.Version {self.ref} {self.type}, {self.file_count} files, "
            f"{size_text(self.size_bytes)}, {self.digest[:11]}>"
        )

    def _repr_html_(self) -> str:
        from html import escape

        rows = {
            "type": self.type,
            "digest": self.digest,
            "files": f"{self.file_count} ({size_text(self.size_bytes)})",
            "aliases": ", ".join(self.aliases),
            "tags": ", ".join(self.tags),
            "metadata": ", ".join(f"{key}={value!r}" for key, value in self.metadata.items()),
        }
        body = "".join(
            f"<tr><th>{key}</th><td>{escape(value)}</td></tr>"
            for key, value in rows.items()
            if value
        )
        return f"<table><caption>{escape(self.ref)}</caption>{body}</table>"


class Versions(Sequence[Version]):
    """The versions of one artifact by number; each is made when it is asked for, since there may be thousands."""

    def __init__(self, home: Home, records: Sequence[VersionRecord]) -> None:
        self._home = home
        self._records = records

    @overload
    def __getitem__(self, index: int) -> Version: ...
    @overload
    def __getitem__(self, index: slice) -> Versions: ...
    def __getitem__(self, index: int | slice) -> Version | Versions:
        if isinstance(index, slice):
            return Versions(self._home, self._records[index])
        return Version(self._home, self._records[index])

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self))}]"
