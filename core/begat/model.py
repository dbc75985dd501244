"""The nouns as frozen facts: Entry, VersionRecord, RunRecord, Edge, and what belongs to them.

A record is what the catalog said at one moment. It does no I/O; `Version` and `Run` wrap records with acts.
Times are microseconds since 1970-01-01 UTC, by the catalog's clock. Ids (`uid`) are UUIDv7 as text.
Digests are `b3:` and the 64 hexadecimal digits of a BLAKE3-256.

They are Structs of msgspec: a frozen dataclass takes 40 times as long to make, which every process pays for 50 of them,
and its instances ten times. What a lineage has by the hundred thousand (versions, runs, edges) has `gc=False`: the
garbage collector does not go through them, since nothing in a record refers back to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec

from begat.identity import Digest, Digests

if TYPE_CHECKING:
    from begat.reference import Bump

Json: TypeAlias = Any  # what json.loads gives; validated by `metadata.canonical_json` at the door

VersionState = Literal["live", "retired", "bytes-gone", "deleted"]
RunStatus = Literal["running", "finished", "failed", "interrupted", "lost"]
EdgeKind = Literal["used", "made", "confirmed"]
BlobKind = Literal["file", "part", "page", "root", "record", "run", "recipe"]
Codec = Literal["none", "zstd"]

NO_METADATA: Mapping[str, Json] = {}


# --- entries: what one path in a version is ---


class _Entry(msgspec.Struct, frozen=True, eq=False):
    """What all kinds have in common: entries are equal where everything but their metadata is."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _identity(self) == _identity(other)

    # A Struct has one of its own, which knows nothing of `__eq__`.
    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((type(self), *_identity(self)))


def _identity(entry: _Entry) -> list[object]:
    return [getattr(entry, name) for name in entry.__struct_fields__ if name != "metadata"]


class StoredFile(_Entry, frozen=True, eq=False):
    """A file whose bytes are in the object store."""

    path: str
    size_bytes: int
    digest: Digest
    is_executable: bool = False
    metadata: Mapping[str, Json] | None = None

    kind = "file"


class Symlink(_Entry, frozen=True, eq=False):
    """A symbolic link; the target is relative to the link's folder and stays inside the version."""

    path: str
    target: str
    metadata: Mapping[str, Json] | None = None

    kind = "symlink"
    size_bytes = 0


class EmptyDirectory(_Entry, frozen=True, eq=False):
    """A folder with nothing in it."""

    path: str
    metadata: Mapping[str, Json] | None = None

    kind = "directory"
    size_bytes = 0


class RemoteAsset(_Entry, frozen=True, eq=False):
    """Bytes that stay where they are; known by a URI and pinned so that a change is noticed.

    `pin` is `b3:<hex>` (the bytes), `etag:<value>`, `modified:<value>` or None (nothing to pin by).
    `size_bytes` is None where the other side does not tell.
    """

    path: str
    uri: str
    size_bytes: int | None = None
    pin: str | None = None
    metadata: Mapping[str, Json] | None = None

    kind = "remote"


Entry: TypeAlias = StoredFile | Symlink | EmptyDirectory | RemoteAsset


# --- storage: where the bytes are ---


class BlobLocation(NamedTuple):
    """Where one blob lies: `stored_length` bytes at `offset` in an object, `raw_length` once decoded.

    A tuple, since a log may make 100,000 of them; its values stand in the order of the catalog's columns.
    """

    digest: Digest
    object: str
    offset: int
    stored_length: int
    raw_length: int
    codec: Codec
    kind: BlobKind


class ObjectRecord(msgspec.Struct, frozen=True):
    """An immutable sequence of bytes in the object store, by name."""

    name: str
    size_bytes: int
    state: Literal["live", "damaged"] = "live"


class RecipeRecord(msgspec.Struct, frozen=True):
    """How a large file is cut into parts: the recipe's own blob, found by the file's digest."""

    file: Digest
    recipe: Digest
    splitter: str
    size_bytes: int


class StagedObject(msgspec.Struct, frozen=True):
    """An object made durable but not yet in the catalog, with the blobs inside it."""

    name: str
    size_bytes: int
    blobs: tuple[BlobLocation, ...]
    recipes: tuple[RecipeRecord, ...] = ()

    @property
    def content_bytes(self) -> int:
        """How many bytes of files it holds, counted as they are when they are not compressed."""
        content = [blob for blob in self.blobs if blob.kind in ("file", "part")]
        # An object that is a file as it is has that file's parts as ranges; a pack is longer than any blob in it.
        if any(blob.stored_length == self.size_bytes for blob in content):
            return self.size_bytes
        return sum(blob.raw_length for blob in content)


# --- names, versions, runs, edges ---


class ArtifactRecord(msgspec.Struct, frozen=True):
    """A name with a type; it has versions.

    The bytes are sums over those versions whose bytes are kept; what they mean, `Version` says.
    """

    uid: str
    name: str
    type: str
    description: str | None
    tags: tuple[str, ...]
    created_at: int
    latest_number: int | None
    version_count: int
    size_bytes: int
    new_bytes: int
    shared_bytes: int


class Holder(NamedTuple):
    """A version that needs something in an object, with its manifest and its record."""

    uid: str
    root: Digest
    record: Digest | None


class VersionRecord(msgspec.Struct, frozen=True, gc=False):
    """An immutable snapshot of files, with its number and labels as they were when it was read."""

    uid: str
    artifact_uid: str
    name: str
    type: str
    number: int
    digest: Digest
    root: Digest
    version: str | None
    description: str | None
    metadata: Mapping[str, Json]
    size_bytes: int
    new_bytes: int
    shared_bytes: int
    file_count: int
    state: VersionState
    run_uid: str | None
    created_at: int
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    is_latest: bool

    @property
    def ref(self) -> str:
        """`digits:v3`."""
        return f"{self.name}:v{self.number}"


class RunRecord(msgspec.Struct, frozen=True, gc=False):
    """One execution, as the catalog knows it."""

    uid: str
    name: str
    job: str | None
    status: RunStatus
    parent_uid: str | None
    started_at: int
    ended_at: int | None
    heartbeat_at: int
    params: Mapping[str, Json]
    metrics: Mapping[str, Json]
    tags: tuple[str, ...]
    git: Mapping[str, Json]
    command: Mapping[str, Json]
    environment: Mapping[str, Json]
    error: Mapping[str, Json] | None
    host: str
    pid: int
    process_started: str
    user: str
    boot_id: str = ""


class Edge(msgspec.Struct, frozen=True, gc=False):
    """A run used, made or confirmed a version.

    `position` counts the edges of a run from 1. A version comes from what its run had used *before* it was made:
    that order is what keeps ancestry free of cycles, also when a run uses what it made itself.
    `requested` is the reference as it was asked for; a run that asks for a version in several ways has an edge for
    each. `mismatch` tells what a detected input looked like when it was
    not the declared one.
    """

    run_uid: str
    version_uid: str
    kind: EdgeKind
    position: int
    at: int
    is_declared: bool = True
    is_detected: bool = False
    role: str | None = None
    requested: str | None = None
    mismatch: str | None = None


class Seen(msgspec.Struct, frozen=True):
    """What a version's content looks like in memory: a fingerprint, of which of its paths, and of which kind."""

    fingerprint: str
    version_uid: str
    path: str
    kind: str


class AliasMove(msgspec.Struct, frozen=True):
    """One line of an alias's history; None as number means that the alias did not exist before, or was removed."""

    artifact: str
    alias: str
    from_number: int | None
    to_number: int | None
    at: int
    by: str
    run_uid: str | None


class Event(msgspec.Struct, frozen=True):
    """One line of the store's history: what changed, when, by whom."""

    uid: str
    at: int
    kind: str
    subject: str
    detail: Mapping[str, Json]
    by: str


# --- what a commit is asked for ---


class Expect(Enum):
    """What a compare-and-set of an alias, `latest` among them, may expect besides a number: anything, or no alias."""

    ANY = "any"
    ABSENT = "absent"


class Mend(msgspec.Struct, frozen=True):
    """A version that held damaged objects, and what it relies on from now on; its content was stored anew."""

    version_uid: str
    root: Digest
    record: Digest
    needs: tuple[Digest, ...]


class NewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that was staged and is to be committed; the catalog decides whether it is new.

    `token` names the attempt: committing it twice gives the same version. `root` and `record` are None when nothing
    was staged because the content seemed to be the latest's. `needs` are the digests of all blobs that the version
    relies on: pages, root, record, recipes, parts and whole files. With `is_late` the run may have ended since the
    files were taken. `expected` is where `latest` must be for the commit to take place. `created_at` is what the
    version's record says; `number` is given only when a catalog is rebuilt from such records, and such a version has
    no edge yet. `recognised` is the version whose content this was found to be without reading it, and all of whose
    objects were looked at: then nothing is staged, and `needs` is empty.
    """

    uid: str
    token: str
    name: str
    digest: Digest
    root: Digest | None
    record: Digest | None
    type: str | None = None
    metadata: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    entry_metadata: Mapping[str, Mapping[str, Json]] = msgspec.field(
        default_factory=dict[str, Mapping[str, Json]]
    )
    description: str | None = None
    size_bytes: int = 0
    new_bytes: int = 0
    shared_bytes: int = 0
    file_count: int = 0
    semver: str | None = None
    bump: Bump | None = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    run_uid: str | None = None
    if_unchanged: Literal["reuse", "new"] = "reuse"
    expected: Expect | int = Expect.ANY
    staged: tuple[StagedObject, ...] = ()
    needs: tuple[Digest, ...] | Digests = ()
    created_by: str = ""
    is_late: bool = False
    created_at: int | None = None
    number: int | None = None
    mends: tuple[Mend, ...] = ()
    recognised: str | None = None


class Standing(msgspec.Struct, frozen=True):
    """How a name stands: its latest version and its type, None where there is none, and the number that comes next."""

    latest: VersionRecord | None = None
    type: str | None = None
    next_number: int = 1


class Commit(msgspec.Struct, frozen=True):
    """What a commit came to: the version, and whether it is a new one."""

    version: VersionRecord
    is_new: bool


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is to be started; the catalog adds status and times.

    `started_at`, `ended_at` and a `status` other than running are given only when a catalog is rebuilt.
    """

    uid: str
    name: str
    job: str | None = None
    parent_uid: str | None = None
    params: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    metrics: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    tags: tuple[str, ...] = ()
    git: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    command: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    environment: Mapping[str, Json] = msgspec.field(default_factory=dict[str, Json])
    error: Mapping[str, Json] | None = None
    host: str = ""
    pid: int = 0
    process_started: str = ""
    boot_id: str = ""
    user: str = ""
    status: RunStatus = "running"
    started_at: int | None = None
    ended_at: int | None = None
