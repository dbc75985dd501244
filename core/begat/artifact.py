"""A draft of the next version: what it will hold and be called. Nothing is stored until it is logged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

from begat.errors import BadPath, warn
from begat.files import told_as
from begat.listing import (
    Data,
    Forest,
    Plan,
    Planned,
    SymlinkPolicy,
    Tree,
    size_of,
    source_of_file,
)
from begat.metadata import check_metadata
from begat.model import EmptyDirectory, Entry, Json
from begat.paths import check_path, parents
from begat.reference import SemVer, check_alias, check_name, check_tag, check_type
from begat.wording import size_text

if TYPE_CHECKING:
    from begat.ignore import Globs


class Artifact:
    """A draft of the next version: what it will hold and be called. Nothing is stored until it is logged.

    Metadata is JSON, and is checked and copied here. Paths are checked when they are added. With `expected_digest`,
    logging raises `DigestMismatch`, and makes no version, unless the content comes to that digest.

    Raises `BadName`, `AliasReserved`, `BadMetadata`.
    """

    def __init__(
        self,
        name: str,
        type: str | None = None,
        *,
        version: str | None = None,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        metadata: Mapping[str, Json] | None = None,
        description: str | None = None,
        expected_digest: str | None = None,
    ) -> None:
        self.name = check_name(name)
        self.type = None if type is None else check_type(type)
        self.version = None if version is None else str(SemVer.parse(version))
        self.aliases = _labels(aliases, check_alias, "aliases")
        self.tags = _labels(tags, check_tag, "tags")
        self.metadata = check_metadata(metadata)
        self.description = description
        self.expected_digest = expected_digest
        self._plan: dict[str, Planned] = {}
        self._above: set[str] = set()  # the folders above these
        self._apart: list[Tree] = []  # folders where nothing else is: kept compact
        self._places = _Places()  # of these
        self._trees: list[Tree] = []
        # Set by whoever adds and logs in one act: then files need not be looked at again when it is logged.
        self.is_listed_now = False

    @property
    def entries(self) -> tuple[Planned, ...]:
        """What was added so far, by path: `path`, `source`, `size_bytes`, `metadata`."""
        return tuple(self.plan)

    @property
    def plan(self) -> Plan:
        """What was added so far, as compact as it can be; for begat's own parts."""
        singles = tuple(self._plan[path] for path in sorted(self._plan, key=str.encode))
        if not self._apart:
            return singles
        is_one = not singles and len(self._trees) == 1
        return self._apart[0] if is_one else Forest(self._apart, singles)

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The folders that were added, as they were listed; for begat's own parts."""
        return tuple(self._trees)

    def add(
        self,
        what: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
        logical_path: str | None = None,
        *,
        overwrite: bool = False,
        metadata: Mapping[str, Json] | None = None,
        include: Globs | None = None,
        exclude: Globs | None = None,
        symlinks: SymlinkPolicy = "keep",
    ) -> Artifact:
        """Add a file, the contents of a folder, bytes, or an open binary file; returns the artifact itself.

        A folder's contents go to the root and a file under its own name; `logical_path` puts either elsewhere, and
        is needed for bytes. Bytes and open files are read now; files and folders are listed now and read when the
        artifact is logged. `include` and `exclude` are globs (`**` crosses folders) for a folder's contents.
        `metadata` is kept for each entry that is added. Nothing is added when anything is refused.

        Raises `BadPath` (also where a path is there already, unless `overwrite`), `UnsupportedFile`, `BadMetadata`.
        """
        kept = check_metadata(metadata) or None
        if not isinstance(what, str | os.PathLike):
            if logical_path is None:
                raise TypeError("bytes and open files need a logical_path")
            self._put([Planned(check_path(logical_path), Data(_bytes_of(what)), kept)], overwrite)
            return self
        place = Path(what)
        if not os.path.lexists(place):
            raise BadPath(f"{place} does not exist; nothing was added")
        if place.is_dir():
            self._put_tree(
                _listed(place, logical_path, kept, include, exclude, symlinks), overwrite
            )
        else:
            path = check_path(logical_path or place.name)
            self._put([Planned(path, source_of_file(place), kept)], overwrite)
        return self

    def add_remote(
        self,
        uri: str,
        logical_path: str | None = None,
        *,
        metadata: Mapping[str, Json] | None = None,
        sync: bool = True,
        max_objects: int = 10_000,
        overwrite: bool = False,
        allow_secrets: bool = False,
    ) -> Artifact:
        """Add bytes that stay where they are: `file://` and `http(s)://` are pinned, other URIs are kept as they are.

        `sync=False` asks nobody and pins nothing. A `file://` folder becomes one entry for each file below it.
        Raises `BadInput` for a URI with a user name, password, signature or token in it, unless `allow_secrets` (it
        is then stored and shown to all who see the version); `Unavailable` if it cannot be reached, `LimitExceeded`
        above `max_objects`.
        """
        from begat.remote import pin

        kept = check_metadata(metadata) or None
        path = check_path(logical_path or _name_of(uri))
        assets = pin(uri, path, sync=sync, max_objects=max_objects, allow_secrets=allow_secrets)
        self._put([Planned(asset.path, asset, kept) for asset in assets], overwrite)
        return self

    def remove(self, logical_path: str) -> Artifact:
        """Take out one entry, or everything below a folder; `BadPath` if there is nothing there."""
        self._spread()
        below = f"{logical_path}/"
        gone = [path for path in self._plan if path == logical_path or path.startswith(below)]
        if not gone:
            raise BadPath(f"{logical_path!r} is not in {self.name}; nothing was removed")
        for path in gone:
            del self._plan[path]
        return self

    def keep(self, entries: Iterable[Entry]) -> None:
        """Take over entries of a version as they are stored; their bytes are not read."""
        self._put(
            [Planned(entry.path, entry, entry.metadata) for entry in entries], overwrite=False
        )

    def _put_tree(self, tree: Tree, overwrite: bool) -> None:
        place = tree.prefix[:-1]
        if len(tree) and self._is_free(place):
            self._apart.append(tree)
            self._places.add(place)
        else:
            planned = list(tree)
            if not planned and place:
                planned = [Planned(place, EmptyDirectory(place), tree.metadata)]
            self._put(planned, overwrite)
        self._trees.append(tree)

    def _is_free(self, place: str) -> bool:
        """Whether nothing is in a folder yet, nor stands in its way."""
        if not place:
            return not self._plan and not self._apart
        in_the_way = self._plan.keys() & {*parents(place), place}
        return not in_the_way and place not in self._above and self._places.are_clear_of(place)

    def _spread(self) -> None:
        """Each path for itself, so that it can be changed."""
        for tree in self._apart:
            self._keep(tree)
        self._apart.clear()
        self._places = _Places()

    def _keep(self, planned: Iterable[Planned]) -> None:
        for one in planned:
            self._plan[one.path] = one
            above = one.path.rpartition("/")[0]
            if above not in self._above:
                self._above.update((*parents(above), above))

    def _put(self, planned: Sequence[Planned], overwrite: bool) -> None:
        if not all(self._places.are_clear_of(one.path) for one in planned):
            self._spread()
        if not overwrite:
            for one in planned:
                known = self._plan.get(one.path)
                are_empty = isinstance(one.source, EmptyDirectory) and (
                    known is None or isinstance(known.source, EmptyDirectory)
                )
                if known is not None and not are_empty:
                    raise BadPath(
                        f"{one.path!r} is in {self.name} already; nothing was added. overwrite=True replaces it"
                    )
        self._keep(planned)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<begat.Artifact {self.name!r} draft, {len(plan)} entries, {size_text(size_of(plan))}>"
        )


class _Places:
    """Where folders lie, none of them in another."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._above: set[str] = set()

    def add(self, folder: str) -> None:
        """One more; the root is the empty text."""
        self._folders.add(folder)
        self._above.update(parents(folder))

    def are_clear_of(self, path: str) -> bool:
        """Whether a path is neither one of the folders, nor in one, nor above one."""
        if not self._folders:
            return True
        is_above = path in self._above or path in self._folders or "" in self._folders
        return not is_above and self._folders.isdisjoint(parents(path))


def _listed(
    root: Path,
    logical_path: str | None,
    metadata: Mapping[str, Json] | None,
    include: Globs | None,
    exclude: Globs | None,
    symlinks: SymlinkPolicy,
) -> Tree:
    from begat.walk import blocks  # not for bytes and single files

    prefix = "" if logical_path is None else f"{check_path(logical_path.rstrip('/'))}/"
    left_out: list[str] = []
    found = list(
        blocks(
            root,
            prefix,
            include=include,
            exclude=exclude,
            symlinks=symlinks,
            left_out=left_out.append,
        )
    )
    if left_out:
        warn(
            f"{left_out[0]!r}{' and others' if left_out[1:] else ''} in {root} was left out: folders of version "
            "control and begat stores always are"
        )
    return Tree(str(root), prefix, found, metadata)


def _bytes_of(what: bytes | bytearray | memoryview | IO[bytes]) -> bytes:
    if isinstance(what, bytes | bytearray | memoryview):
        return bytes(what)
    if not callable(getattr(what, "read", None)):
        raise TypeError(
            f"a path, bytes or an open binary file can be added, not {type(what).__name__}"
        )
    with told_as("reading the open file"):
        data: object = what.read()
    if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("the open file gives text; open it in binary mode")
    return data


def _name_of(uri: str) -> str:
    name = PurePath(uri.split("?")[0].split("#")[0].rstrip("/")).name
    if not name:
        raise BadPath(f"give a logical_path for {uri!r}; nothing was added")
    return name


def _labels(given: Iterable[str], check: Callable[[object], str], what: str) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TypeError(f"{what} are a list of texts, not one text")
    return tuple(dict.fromkeys(check(label) for label in given))
