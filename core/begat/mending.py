"""What can be written anew of versions that lost it: the record of a version says what its catalog says.

Whoever logs some content brings its files and its manifest, and with them mends every version that has this content.
Such a version's own record, and the facts of its run, are no part of the content: they are made from the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from begat.blobs import BlobWriter
from begat.identity import Digest, digest_of
from begat.model import Json, Mend, RunRecord, VersionRecord
from begat.record import (
    InputRecord,
    VersionFile,
    encode_record,
    encode_run_facts,
    without_facts,
)

if TYPE_CHECKING:
    from begat.catalog import Catalog


def mends(
    digest: Digest,
    content: Iterable[Digest],
    root: Digest,
    *,
    writer: BlobWriter,
    catalog: Catalog,
) -> Iterator[Mend]:
    """How the versions with a content that hold damaged objects come to sound ones, now that the content is stored.

    `content` are the blobs that it relies on, its manifest's with the given `root` too.
    """
    for version in catalog.versions.find_damaged(digest):
        old = version.root if writer.is_stored(version.root) else root
        record, needs = recorded(version, old, writer=writer, catalog=catalog)
        yield Mend(version.uid, old, record, (*content, old, *needs))


def recorded(
    version: VersionRecord, root: Digest, *, writer: BlobWriter, catalog: Catalog
) -> tuple[Digest, list[Digest]]:
    """A version's record, and the blobs that it relies on; written anew where one of them cannot be read as it is."""
    run = None if version.run_uid is None else catalog.runs.get(version.run_uid)
    facts = [] if run is None else [writer.later(encode_run_facts(run), "run")]
    record = catalog.versions.record_of(version.uid)
    if record is None or root != version.root or not writer.is_stored(record):
        file = _version_file(version, root, run, facts, catalog)
        record = writer.later(encode_record(file), "record")
    return record, [*facts, record]


def record_on_offer(
    version: VersionRecord, writer: BlobWriter, catalog: Catalog
) -> list[Digest] | None:
    """The root, record and facts of the run of a version, where all of them can be read as they are; else None."""
    record = catalog.versions.record_of(version.uid)
    if record is None:
        return None
    needs = [version.root, record]
    if version.run_uid is not None:
        needs.append(digest_of(encode_run_facts(catalog.runs.get(version.run_uid))))
    return needs if all(map(writer.is_stored, needs)) else None


def inputs_of(
    run: RunRecord | None, catalog: Catalog, *, made: str | None = None
) -> tuple[InputRecord, ...]:
    """What a run has used, before it made the version with the uid `made` if that is given."""
    if run is None:
        return ()
    used = catalog.runs.uses(run.uid, before=made)
    versions = catalog.versions.get_many([edge.version_uid for edge in used])
    return tuple(
        InputRecord(
            edge.version_uid,
            versions[edge.version_uid].ref,
            edge.position,
            edge.requested,
            edge.role,
            edge.is_declared,
            edge.is_detected,
            edge.mismatch,
        )
        for edge in used
    )


def _version_file(
    version: VersionRecord,
    root: Digest,
    run: RunRecord | None,
    facts: Sequence[Digest],
    catalog: Catalog,
) -> VersionFile:
    """A version's record, as the catalog knows it now."""
    token, created_by = catalog.versions.made_by(version.uid)
    entry_metadata: Mapping[str, Mapping[str, Json]] = catalog.versions.entry_metadata(version.uid)
    return VersionFile(
        store_uid=catalog.store_uid,
        uid=version.uid,
        token=token,
        name=version.name,
        type=version.type,
        expected_number=version.number,
        digest=version.digest,
        root=root,
        semver=version.version,
        aliases=version.aliases,
        tags=version.tags,
        description=version.description,
        metadata=version.metadata,
        entry_metadata=entry_metadata,
        size_bytes=version.size_bytes,
        file_count=version.file_count,
        created_at=version.created_at,
        created_by=created_by,
        run=None if run is None else without_facts(run),
        run_facts=facts[0] if facts else None,
        inputs=inputs_of(run, catalog, made=version.uid),
    )
