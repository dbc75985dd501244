"""The front door: a catalog and an object store, opened together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from begat.active import active_run
from begat.artifact import Artifact
from begat.blobs import BlobReader
from begat.cache import Cache
from begat.catalog import Catalog, how_to_free
from begat.errors import BadInput, ReadOnly, RunFinished, RunNotFound, StoreFull
from begat.listing import SymlinkPolicy
from begat.locks import StoreLocks
from begat.model import (
    AliasMove,
    ArtifactRecord,
    Expect,
    Json,
    RunStatus,
    VersionRecord,
)
from begat.objects import ObjectStore
from begat.process import user_name
from begat.publish import Publication, publish
from begat.reference import (
    Bump,
    check_alias,
    check_name,
    check_tag,
    parse_reference,
    parse_version_reference,
)
from begat.run import Content, Run
from begat.starting import start
from begat.statcache import StatCache
from begat.version import Version, Versions

# Imported where they are called: most processes log or look something up, and each of these takes a while to load.
if TYPE_CHECKING:
    from begat.drawing import Lineage
    from begat.ignore import Globs
    from begat.lineage import Graph
    from begat.stale import Explanation, Stale
    from begat.sweep import SweepReport
    from begat.verify import VerifyReport

ANY = Expect.ANY
ABSENT = Expect.ABSENT


class Store:
    """Artifacts, versions and runs in one place; made by `begat.open_store`. Safe to use from several threads."""

    def __init__(
        self, path: Path, catalog: Catalog, objects: ObjectStore, locks: StoreLocks, cache: Cache
    ) -> None:
        self.path = path
        self._catalog = catalog
        self._objects = objects
        self._locks = locks
        self._cache = cache
        self._stats = StatCache(cache.root, catalog.store_uid, probes=(objects.tmp,))
        self._user = user_name()
        self.is_closed = False

    @property
    def uid(self) -> str:
        """The store's id: copies of it (a backup, a moved folder) have the same."""
        return self._catalog.store_uid

    @property
    def is_read_only(self) -> bool:
        """True if nothing can be written here: reading works, everything else raises `ReadOnly`."""
        return self._catalog.is_read_only

    # --- reading: no run, no edge ---

    def get_artifact(self, ref: str) -> Version:
        """The version that a reference means; nothing is recorded.

        Raises `BadReference` (also for one with a path: see `Version.open`), `ArtifactNotFound`, `VersionNotFound`,
        `VersionDeleted`, `AmbiguousReference`.
        """
        return self.version_of(self._catalog.versions.resolve(parse_version_reference(ref)))

    def artifacts(
        self, *, type: str | None = None, tag: str | None = None, query: str | None = None
    ) -> list[ArtifactRecord]:
        """The artifacts by name; `query` is text that name or description holds, in any case."""
        return self._catalog.versions.list_artifacts(type=type, tag=tag, query=query)

    def versions(self, name: str, *, with_deleted: bool = False) -> Sequence[Version]:
        """The versions of an artifact by number; `ArtifactNotFound` names the nearest names."""
        return Versions(
            self, self._catalog.versions.list(check_name(name), with_deleted=with_deleted)
        )

    def runs(
        self,
        *,
        job: str | None = None,
        status: RunStatus | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """The runs, newest first."""
        found = self._catalog.runs.list(job=job, status=status, tag=tag, limit=limit)
        return [Run(self, record) for record in found]

    def get_run(self, id: str) -> Run:
        """The run with this id or name, or with the only id that begins so; `RunNotFound`, `AmbiguousReference`."""
        return Run(self, self._catalog.runs.find(id))

    # --- lineage ---

    def lineage(
        self,
        ref_or_run: str | Version | Run,
        direction: Literal["upstream", "downstream", "both"] = "both",
        depth: int | None = None,
    ) -> Lineage:
        """What a version or run came from, what came of it, or both; `depth` counts versions (1 = one run away).

        A deleted version still has its place, and is found by number or digest.
        """
        if direction not in ("upstream", "downstream", "both"):
            raise TypeError(f"direction is 'upstream', 'downstream' or 'both', not {direction!r}")
        from begat.drawing import Lineage
        from begat.lineage import Graph

        version_uids, run_uids = self._roots(ref_or_run)
        versions, runs, edges = self._catalog.runs.lineage(
            version_uids=version_uids, run_uids=run_uids, direction=direction, depth=depth
        )
        return Lineage(
            Graph(versions, runs, tuple(edges), (*version_uids, *run_uids)), direction=direction
        )

    def stale(self, *, ignore_pinned: bool = False) -> list[Stale]:
        """The latest and aliased versions that were made from inputs that are no longer current, with the reason."""
        from begat.stale import find_stale

        heads = self._catalog.versions.all_heads()
        return find_stale(heads, self._ancestry(heads), self._current, ignore_pinned=ignore_pinned)

    def why(self, ref: str, *, ignore_pinned: bool = False) -> Explanation:
        """Whether one version is stale, and what that rests on; a deleted one is found by number or digest."""
        from begat.stale import explain

        record = self._catalog.versions.resolve(parse_version_reference(ref), with_deleted=True)
        # With all heads: a version of equal content may be one of them, and make this one fresh.
        graph = self._ancestry([record, *self._catalog.versions.all_heads()])
        told = explain(record, graph, self._current, ignore_pinned=ignore_pinned)
        if record.state != "deleted":
            return told
        return replace(told, lines=(self._catalog.versions.deletion_text(record), *told.lines))

    # --- labels ---

    def alias(self, ref: str, name: str, *, expect: Expect | str = ANY) -> AliasMove:
        """Move an alias to a version; only if it is where it is expected (`ANY`, `ABSENT`, or `"v3"`).

        Raises `AliasMoved` naming where it is, `AliasReserved`, `BadName`, and what a reference raises.
        """
        record = self._catalog.versions.resolve(parse_version_reference(ref))
        return self._catalog.labels.move_alias(
            record.uid,
            check_alias(name),
            expect=_expected(expect),
            by=self._user,
            run_uid=_active_id(),
        )

    def remove_alias(self, artifact: str, name: str, *, expect: Expect | str = ANY) -> AliasMove:
        """Remove an alias from its version; `VersionNotFound` if the artifact has none of this name."""
        return self._catalog.labels.remove_alias(
            check_name(artifact), check_alias(name), expect=_expected(expect), by=self._user
        )

    def alias_history(self, name: str, alias: str) -> list[AliasMove]:
        """Every move of an alias, oldest first."""
        self._catalog.versions.artifact(check_name(name))
        return self._catalog.labels.alias_history(name, alias)

    def tag_artifact(self, name: str, *tags: str, remove: bool = False) -> None:
        """Add tags to an artifact as a whole, or remove them."""
        uid = self._catalog.versions.artifact(check_name(name)).uid
        change = self._catalog.labels.remove_tags if remove else self._catalog.labels.add_tags
        change("artifact", uid, [check_tag(tag) for tag in tags], by=self._user)

    def describe_artifact(self, name: str, text: str | None) -> None:
        """Say in words what an artifact is."""
        uid = self._catalog.versions.artifact(check_name(name)).uid
        self._catalog.labels.set_description("artifact", uid, text, by=self._user)

    def delete(self, ref: str, *, force: bool = False) -> None:
        """Delete one version, named by number or digest; see `Version.delete`."""
        asked = parse_version_reference(ref)
        if asked.kind not in ("number", "digest"):
            raise BadInput(
                f"{ref!r} may mean another version tomorrow; delete by number or digest, such as "
                f"{self._catalog.versions.resolve(asked).ref}. Nothing was deleted"
            )
        self.get_artifact(ref).delete(force=force)

    # --- writing ---

    def start_run(
        self,
        name: str | None = None,
        *,
        job: str | None = None,
        uses: Iterable[str | Version] = (),
        params: Mapping[str, Json] | None = None,
        tags: Iterable[str] = (),
    ) -> Run:
        """Start a run, best as `with store.start_run("train") as run:`; its `uses` are recorded before it returns.

        Inside the `with` of another run it is that run's child. Outside, a run that is still open is finished first.
        A process with `BEGAT_RUN_ID` joins that run instead of starting one; a process that is one of many and not
        rank 0 only watches. All of `uses` is looked up first: if one does not exist that raises, and no run is made.
        """
        self._check_writable(None)
        return start(self, name, job=job, uses=uses, params=params, tags=tags)

    def log_artifact(
        self,
        artifact_or_name: Artifact | str,
        path: Content | None = None,
        *,
        type: str | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        metadata: Mapping[str, Json] | None = None,
        description: str | None = None,
        if_unchanged: Literal["reuse", "new"] = "reuse",
        expect: Expect | str = Expect.ANY,
        include: Globs | None = None,
        exclude: Globs | None = None,
        symlinks: SymlinkPolicy = "keep",
        portable: bool = False,
        stat_cache: bool = True,
        run: Run | None = None,
    ) -> Version:
        """Store files as the next version, made by `run` or by no run; see `Run.log_artifact`."""
        if if_unchanged not in ("reuse", "new"):
            raise TypeError(f"if_unchanged is 'reuse' or 'new', not {if_unchanged!r}")
        if bump not in (None, "major", "minor", "patch"):
            raise TypeError(f"bump is 'major', 'minor' or 'patch', not {bump!r}")
        given = artifact_or_name
        if not isinstance(given, str | Artifact):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"give an artifact's name or an Artifact, not {given!r}")
        labels = Artifact(
            given if isinstance(given, str) else given.name,
            type,
            version=version,
            aliases=aliases,
            tags=tags,
            metadata=metadata,
            description=description,
        )
        draft = labels if isinstance(given, str) else given
        if isinstance(given, str):
            _add(draft, path, include=include, exclude=exclude, symlinks=symlinks)
        elif path is not None:
            raise TypeError("an Artifact holds its files already; add the path to it")
        if bump is not None and (labels.version or draft.version):
            raise TypeError("give version= or bump=, not both")
        self._check_writable(run)
        what = Publication(
            name=draft.name,
            type=labels.type or draft.type,
            plan=draft.plan,
            trees=draft.trees,
            is_listed_now=draft.is_listed_now,
            believes_stats=stat_cache,
            metadata={**draft.metadata, **labels.metadata},
            description=labels.description if labels.description is not None else draft.description,
            semver=labels.version or draft.version,
            bump=bump,
            aliases=tuple(dict.fromkeys((*draft.aliases, *labels.aliases))),
            tags=tuple(dict.fromkeys((*draft.tags, *labels.tags))),
            run=None if run is None else run.record,
            if_unchanged=if_unchanged,
            expected=_expected(expect),
            portable=portable,
            created_by=self._user,
            expected_digest=draft.expected_digest,
        )
        return self.publish(what)

    # --- care ---

    def verify(
        self, ref: str | None = None, *, subset: tuple[int, int] | None = None
    ) -> VerifyReport:
        """Read stored bytes again: of one version, of part n of t of all objects, or of everything."""
        from begat.verify import Subset, VerifyReport, verify_store

        if ref is not None:
            version = self.get_artifact(ref)
            return VerifyReport(version.verify(), 1, 0, version.size_bytes)
        chosen = None if subset is None else Subset(*subset)
        return verify_store(self._catalog, self._objects, self.reader, subset=chosen)

    def gc(self, dry_run: bool = True, *, wait: float = 0.0) -> SweepReport:
        """Remove bytes that no version needs; by default only say what would go, and why the rest is kept.

        `wait` is how many seconds to wait for writers to make room; `CatalogBusy` names them when they do not.
        """
        from begat.sweep import sweep

        if not dry_run:
            self._check_writable(None)
        return sweep(
            self._catalog, self._objects, self._locks, dry_run=dry_run, wait_s=wait, by=self._user
        )

    def backup(self, target: str | os.PathLike[str]) -> Path:
        """A consistent copy of the catalog (names, numbers, lineage, labels) as one file; objects never change."""
        path = Path(target)
        self._catalog.backup(path)
        return path

    def close(self) -> None:
        """Let go of files and connections; the store can be opened again."""
        self.is_closed = True
        self._catalog.close()

    # --- what versions and runs ask ---

    def publish(self, what: Publication) -> Version:
        """The version that a plan now is; for begat's own parts."""
        try:
            done = publish(
                what,
                catalog=self._catalog,
                objects=self._objects,
                locks=self._locks,
                stats=self._stats,
            )
        except StoreFull as error:
            if "begat gc" in error.message:  # of the catalog, which names its disk
                raise
            raise StoreFull(f"{error.message}. {how_to_free(self._objects.folder)}") from error
        return Version(self, done.version, is_new=done.is_new)

    @property
    def catalog(self) -> Catalog:
        """The catalog; for begat's own parts."""
        return self._catalog

    @property
    def objects(self) -> ObjectStore:
        """The object store; for begat's own parts."""
        return self._objects

    @property
    def locks(self) -> StoreLocks:
        """The locks; for begat's own parts."""
        return self._locks

    @property
    def cache(self) -> Cache:
        """The user's cache of read-only folders."""
        return self._cache

    @property
    def user(self) -> str:
        """Who is recorded as the author of changes."""
        return self._user

    def reader(self) -> BlobReader:
        """A new reader of blobs."""
        return BlobReader(self._objects, self._catalog.bytes, is_read_only=self.is_read_only)

    def version_of(self, record: VersionRecord) -> Version:
        """A record as a `Version`."""
        return Version(self, record)

    # --- inside ---

    def _roots(self, what: str | Version | Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if isinstance(what, Run):
            return (), (what.id,)
        if isinstance(what, Version):
            return (what.uid,), ()
        try:
            asked = parse_version_reference(what)
            return (self._catalog.versions.resolve(asked, with_deleted=True).uid,), ()
        except (BadInput, LookupError):
            # A run reads like an artifact's name: only if there is such a run is that what was meant.
            try:
                return (), (self._catalog.runs.find(what).uid,)
            except RunNotFound:
                pass
            raise

    def _ancestry(self, heads: Iterable[VersionRecord]) -> Graph:
        """All that these versions came from, and what the runs that confirmed any of it had used.

        A run that came to the same content with newer inputs makes it fresh.
        """
        from begat.lineage import Graph

        uids = tuple(head.uid for head in heads)
        versions, runs, edges = self._catalog.runs.lineage(
            version_uids=uids, direction="upstream", through_confirmed=True
        )
        return Graph(versions, runs, tuple(edges), uids)

    def _current(self, ref: str) -> VersionRecord | None:
        try:
            return self._catalog.versions.resolve(parse_reference(ref))
        except LookupError:
            return None

    def _check_writable(self, run: Run | None) -> None:
        if self.is_read_only:
            raise ReadOnly(f"the store {self.path} can only be read from here; nothing was changed")
        if run is not None and run.record.status != "running":
            raise RunFinished(
                f"the run {run.name} is {run.record.status}; it makes nothing more. Start another one"
            )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<begat.Store {str(self.path)!r}>"


def _add(
    draft: Artifact,
    path: Content | None,
    *,
    include: Globs | None,
    exclude: Globs | None,
    symlinks: SymlinkPolicy,
) -> None:
    """Add what is logged by name: a folder's contents, a file under its own name, bytes under the artifact's."""
    if path is None:
        raise TypeError("give what to log: a file, a folder, bytes, or an Artifact")
    draft.is_listed_now = True
    logical_path = None if isinstance(path, str | os.PathLike) else draft.name.rpartition("/")[2]
    draft.add(path, logical_path, include=include, exclude=exclude, symlinks=symlinks)


def _expected(expect: Expect | str) -> Expect | int:
    if isinstance(expect, Expect):
        return expect
    text = expect.removeprefix("v")
    if not text.isdigit():
        raise BadInput(
            f"an alias (or latest) is expected at a number such as 'v3', not {expect!r}; nothing was changed"
        )
    return int(text)


def _active_id() -> str | None:
    run = active_run()
    return run.id if run and run.id else None
