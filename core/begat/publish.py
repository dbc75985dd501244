"""A plan becomes a version: the one order of steps that every log goes through.

    check every path -> writer lock, shared -> store bytes, durably -> one catalog transaction -> release

A row implies its bytes. A crash before the transaction leaves bytes that nobody names, which garbage collection
finds; the other order would leave a version that cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from begat.blobs import BlobWriter
from begat.builder import Built, ManifestBuilder
from begat.catalog import StageAgain
from begat.errors import (
    BadPath,
    CatalogBusy,
    DigestMismatch,
    warn,
)
from begat.files import told_as
from begat.identity import Digest, Digests, new_uid
from begat.listing import Data, Forest, LocalFile, Plan, Tree, paths_of, size_of
from begat.locks import StoreLocks, WriterLock
from begat.manifest import Manifest
from begat.mending import inputs_of, mends, record_on_offer, recorded
from begat.metadata import canonical_json
from begat.model import (
    Commit,
    EmptyDirectory,
    Entry,
    Expect,
    Json,
    NewVersion,
    RunRecord,
    StagedObject,
    Standing,
    StoredFile,
    VersionRecord,
)
from begat.objects import ObjectStore
from begat.paths import parents, portability_problems
from begat.progress import current as current_progress
from begat.progress import reporting
from begat.recall import Recollection
from begat.record import InputRecord, VersionFile, encode_record, encode_run_facts, without_facts
from begat.reference import Bump
from begat.snapshot import Snapshot, store
from begat.statcache import StatCache

if TYPE_CHECKING:
    from begat.catalog import Catalog

# Each time round, another process changed what this log relied on; ten times in a row is a fault of something else.
ATTEMPTS = 10
_PLACEHOLDER = Digest("b3:" + "0" * 64)


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become a version: the plan, the labels, and the run that makes it.

    `trees` are the folders that the plan was listed from; `is_listed_now` says that they were listed by this very log,
    and `believes_stats` that a file which looks as it did when it was last read need not be read.
    `is_late` says that the files were taken while the run was running, and that it may have ended since. If the content
    has another digest than `expected_digest`, no version is made.
    """

    name: str
    type: str | None
    plan: Plan
    trees: Sequence[Tree] = ()
    is_listed_now: bool = False
    believes_stats: bool = True
    metadata: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    description: str | None = None
    semver: str | None = None
    bump: Bump | None = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    run: RunRecord | None = None
    if_unchanged: Literal["reuse", "new"] = "reuse"
    expected: Expect | int = Expect.ANY
    portable: bool = False
    created_by: str = ""
    token: str = ""
    is_late: bool = False
    expected_digest: str | None = None


def publish(
    what: Publication,
    *,
    catalog: Catalog,
    objects: ObjectStore,
    locks: StoreLocks,
    stats: StatCache | None = None,
) -> Commit:
    """The version that this content now is; returns when it is durable. Committing the same token twice is once."""
    known = Recollection(
        in_order(what.plan),
        what.trees,
        stats,
        believes=what.believes_stats,
        is_listed_now=what.is_listed_now,
    )
    problem = checked_names(what, known)
    token = what.token or new_uid()
    total = size_of(known.plan)
    with (
        reporting(f"logging {what.name}", total, total_files=len(known.plan)),
        told_as(f"logging {what.name}"),
        locks.writing() as lock,
    ):
        done, changed = _committed(what, known, token, lock, catalog, objects)
    if changed is not None:
        known.keep(changed, content=done.version.digest, problem=problem)
    return done


def _committed(
    what: Publication,
    known: Recollection,
    token: str,
    lock: WriterLock,
    catalog: Catalog,
    objects: ObjectStore,
) -> tuple[Commit, frozenset[str] | None]:
    """What it came to, and which files were not as listed; None where the content was recognised without reading."""
    new = _recognised(what, known, token, catalog, objects)
    changed: frozenset[str] | None = None
    for _ in range(ATTEMPTS):
        with BlobWriter(objects, catalog.bytes, check=lock.check) as writer:
            if new is None:
                snapshot, manifest = _stored(known, writer)
                new = _stage(what, snapshot.needs, manifest, token, writer, catalog)
                changed = snapshot.changed
            lock.check()
            try:
                return catalog.commits.commit(new), changed
            except StageAgain:
                new = None
    raise CatalogBusy(
        f"{what.name} changed {ATTEMPTS} times while it was logged; no version was made. Try again"
    )


def in_order(plan: Plan) -> Plan:
    """The plan in order of its paths, once every rule of a manifest was checked, before a byte is stored."""
    if isinstance(plan, Tree):
        return plan  # a walk keeps the order and the rules
    if isinstance(plan, Forest):
        return Forest(plan.trees, in_order(plan.others))  # none stands where a folder is
    folders = {parent for planned in plan for parent in parents(planned.path)}
    # A folder that was empty when it was added and has files now is no entry of its own any more.
    plan = [
        planned
        for planned in plan
        if not (isinstance(planned.source, EmptyDirectory) and planned.path in folders)
    ]
    Manifest.of(
        StoredFile(planned.path, 0, _PLACEHOLDER)
        if isinstance(planned.source, LocalFile | Data)
        else planned.entry
        for planned in plan
    )
    return sorted(plan, key=lambda planned: planned.path)


def checked_names(what: Publication, known: Recollection) -> str:
    """What the names would be in the way of on other systems: told as a warning, or `BadPath` where it must not be."""
    if known.whole.content is not None:
        problem = known.whole.problem
    else:
        found = portability_problems(paths_of(known.plan))
        problem = next(found, "")
        others = sum(1 for _ in found)
        problem += f" (and {others:,} more)" if others else ""
    if problem and what.portable:
        raise BadPath(f"{problem}; nothing was stored, since the version was to be portable")
    if problem:
        warn(f"{what.name}: {problem}; it can be restored as it is on Linux")
    return problem


def _recognised(
    what: Publication,
    known: Recollection,
    token: str,
    catalog: Catalog,
    objects: ObjectStore,
) -> NewVersion | None:
    """The latest version once more, if this is known to be its content and all its bytes are there; else None."""
    content = known.whole.content
    latest = None if content is None else catalog.versions.standing(what.name).latest
    if (
        latest is None
        or content is None
        or what.expected_digest not in (None, content)
        or latest.state != "live"
        or not _is_unchanged(what, content, {}, latest, catalog)
        or catalog.versions.find_damaged(content)
    ):
        return None
    with BlobWriter(objects, catalog.bytes) as writer:
        if record_on_offer(latest, writer, catalog) is None:
            return None
    for held in catalog.bytes.held_objects(latest.uid):
        if held.state != "live" or objects.stat(held.name) != held.size_bytes:
            return None
    current_progress().advance(bytes=latest.size_bytes, files=len(known.plan))
    new = _asked(what, token, uid=new_uid(), digest=content)
    return replace(new, recognised=latest.uid)


def _stored(known: Recollection, writer: BlobWriter) -> tuple[Snapshot, Built]:
    """Store what is new; the manifest is written while its entries come."""
    builder = ManifestBuilder(lambda page: writer.later(page, "page"))

    def take(entries: Sequence[Entry]) -> None:
        known.note(entries)
        builder.add(entries)

    known.start()
    return store(known.stored(writer), writer, take), builder.finish()


def _stage(
    what: Publication,
    content: Digests,
    manifest: Built,
    token: str,
    writer: BlobWriter,
    catalog: Catalog,
) -> NewVersion:
    """Make all bytes durable, and say what is to be committed."""
    if what.expected_digest not in (None, manifest.digest):
        raise DigestMismatch(
            f"{what.name} should be {what.expected_digest}, not {manifest.digest}; no version was made"
        )
    root = writer.later(manifest.root, "root")
    content.extend(ref.digest for ref in manifest.pages)
    content.add(root)
    new = _recorded_as(what, manifest, root, token, writer, catalog)
    writer.settle()  # first, since damage may be found only by these look-ups
    mended = tuple(mends(manifest.digest, content, root, writer=writer, catalog=catalog))
    content.extend(new.needs)
    writer.settle()
    new_bytes = writer.new_bytes
    staged: tuple[StagedObject, ...] = writer.seal()
    return replace(
        _asked(what, token, uid=new.uid, digest=manifest.digest),
        # Without a record it was staged as a reuse; if it comes to a new version all the same, it is staged again.
        root=root if new.record else None,
        record=new.record,
        entry_metadata=manifest.entry_metadata,
        size_bytes=manifest.size_bytes,
        new_bytes=new_bytes,
        # What else was stored to mend other versions is no part of this one.
        shared_bytes=max(0, manifest.size_bytes - writer.content_bytes),
        file_count=manifest.file_count,
        semver=new.semver,
        staged=staged,
        needs=content,
        created_at=new.created_at,
        mends=mended,
    )


class _Recorded(NamedTuple):
    """The record that was written, of the version with this uid, or none; and the blobs that it relies on.

    Where none was written, the latest version's own must be there still when this log is committed.
    """

    uid: str
    semver: str | None
    record: Digest | None = None
    needs: Sequence[Digest] = ()
    created_at: int | None = None


def _recorded_as(
    what: Publication,
    manifest: Built,
    root: Digest,
    token: str,
    writer: BlobWriter,
    catalog: Catalog,
) -> _Recorded:
    """The record of a version that will be new; or the latest one's, where nothing is new and that has lost its own."""
    inputs: tuple[InputRecord, ...] = ()
    semver = what.semver
    # No file is touched inside: a fork waits for open transactions.
    with catalog.reading():
        now = catalog.versions.standing(what.name)
        latest = now.latest
        is_unchanged = latest is not None and _is_unchanged(
            what, manifest.digest, manifest.entry_metadata, latest, catalog
        )
        if not is_unchanged:
            inputs = inputs_of(what.run, catalog)
            if what.bump is not None:
                semver = catalog.versions.bumped(what.name, what.bump)
    if latest is not None and is_unchanged:
        # One whose bytes were given up holds nothing, even if gc has not removed them yet.
        on_offer = (
            None if latest.state == "bytes-gone" else record_on_offer(latest, writer, catalog)
        )
        if on_offer is not None:
            return _Recorded(new_uid(), what.semver, needs=on_offer)
        record, needs = recorded(latest, root, writer=writer, catalog=catalog)
        return _Recorded(latest.uid, what.semver, record, needs)
    facts = [] if what.run is None else [writer.later(encode_run_facts(what.run), "run")]
    file = _version_file(what, semver, manifest, token, root, facts, now, inputs, catalog)
    record = writer.later(encode_record(file), "record")
    return _Recorded(file.uid, semver, record, [*facts, record], file.created_at)


def _asked(what: Publication, token: str, *, uid: str, digest: Digest) -> NewVersion:
    """What is asked of the catalog, before it is said where the bytes are."""
    return NewVersion(
        uid=uid,
        token=token,
        name=what.name,
        type=what.type,
        digest=digest,
        root=None,
        record=None,
        metadata=what.metadata,
        description=what.description,
        semver=what.semver,
        bump=what.bump,
        aliases=what.aliases,
        tags=what.tags,
        run_uid=what.run.uid if what.run else None,
        if_unchanged=what.if_unchanged,
        expected=what.expected,
        created_by=what.created_by,
        is_late=what.is_late,
    )


def _is_unchanged(
    what: Publication,
    digest: Digest,
    entry_metadata: Mapping[str, Mapping[str, Json]],
    latest: VersionRecord,
    catalog: Catalog,
) -> bool:
    """Whether the commit will probably find nothing new; if it does not, it asks to stage again."""
    return (
        what.if_unchanged == "reuse"
        and latest.digest == digest
        and canonical_json(latest.metadata) == canonical_json(what.metadata)
        and canonical_json(catalog.versions.entry_metadata(latest.uid))
        == canonical_json(entry_metadata)
    )


def _version_file(
    what: Publication,
    semver: str | None,
    manifest: Built,
    token: str,
    root: Digest,
    run_facts: Sequence[Digest],
    now: Standing,
    inputs: tuple[InputRecord, ...],
    catalog: Catalog,
) -> VersionFile:
    return VersionFile(
        store_uid=catalog.store_uid,
        uid=new_uid(),
        token=token,
        name=what.name,
        type=what.type or now.type or "data",
        expected_number=now.next_number,
        digest=manifest.digest,
        root=root,
        semver=semver,
        aliases=what.aliases,
        tags=what.tags,
        description=what.description,
        metadata=what.metadata,
        entry_metadata=manifest.entry_metadata,
        size_bytes=manifest.size_bytes,
        file_count=manifest.file_count,
        created_at=catalog.now(),
        created_by=what.created_by,
        run=without_facts(what.run) if what.run else None,
        run_facts=run_facts[0] if run_facts else None,
        inputs=inputs,
    )
