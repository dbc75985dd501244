"""Logging the right bytes again mends every version that has them, whichever of its blobs was damaged."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat.model import BlobKind, BlobLocation
from begat.rebuild import rebuild_store
from trees import MIB

DICE = random.Random(7)
LARGE = DICE.randbytes(5 * MIB)
# The second large file shares most of its parts with the first one, so its new part lies in the pack.
CONTENT = {
    "a.txt": b"small",
    "large.bin": LARGE,
    "part.bin": LARGE[: 4 * MIB] + DICE.randbytes(MIB),
}
KINDS: list[BlobKind] = ["file", "part", "page", "root", "record", "run", "recipe"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store(tmp_path / "s") as opened:
        yield opened


def log(
    store: begat.Store | begat.Run, name: str, content: dict[str, bytes], **labels: str
) -> begat.Version:
    draft = begat.Artifact(name, metadata=labels, description=labels.get("d"))
    for path, data in content.items():
        draft.add(data, path, metadata={"path": path} if labels else None)
    return store.log_artifact(draft)


def make(store: begat.Store) -> begat.Version:
    """A version of a run that used another one; it is not the latest of its artifact."""
    log(store, "input", {"i": b"input"})
    with store.start_run("train", uses=["input"], params={"lr": 1}) as run:
        version = log(run, "x", CONTENT, d="the first", more="metadata")
    log(store, "x", {"other": b"the latest"})
    return version


def blob_of(store: begat.Store, version: begat.Version, kind: BlobKind) -> BlobLocation:
    """The blob of a kind that the version alone has; of files, the small one."""
    for record in store.catalog.bytes.held_objects(version.uid):
        blobs = {blob.kind: blob for blob in store.catalog.bytes.blobs_in(record.name)}
        if "root" in blobs:
            return blobs[kind]
    raise AssertionError("it has no pack")


def damage(store: begat.Store, place: BlobLocation) -> None:
    path = store.path / "objects" / place.object
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place.offset + place.stored_length // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))


def facts(store: begat.Store, ref: str) -> tuple[object, ...]:
    version = store.get_artifact(ref)
    run = version.produced_by
    return (
        {entry.path: version.read_bytes(entry.path) for entry in version.entries},
        [(entry, entry.metadata) for entry in version.entries],
        (version.uid, version.number, version.digest, version.metadata, version.description),
        run and (run.id, run.params, dict(run.git), dict(run.environment), run.command),
        run and [used.ref for used in run.inputs],
        store.catalog.versions.made_by(version.uid),
    )


@pytest.mark.parametrize("name", ["x", "another"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_older_version_is_mended_by_logging_its_content_again(
    store: begat.Store, kind: BlobKind, name: str
) -> None:
    version = make(store)
    before = facts(store, version.ref)
    damage(store, blob_of(store, version, kind))
    found = store.verify().damaged
    assert any(each.place.startswith(version.ref) for each in found)

    assert log(store, name, CONTENT).is_new
    assert store.verify().damaged == ()
    assert facts(store, version.ref) == before

    # What was damaged is needed by nobody, and a catalog made from the rest knows the version as it was.
    store.gc(dry_run=False)
    assert list((store.path / "damaged").iterdir()) == []
    store.close()
    (store.path / "catalog.sqlite").unlink()
    assert rebuild_store(store.path).problems == ()
    with begat.open_store(store.path) as again:
        assert facts(again, version.ref) == before
        assert again.verify().damaged == ()


def test_all_versions_with_the_content_are_mended_at_once(store: begat.Store) -> None:
    first = log(store, "x", CONTENT, d="1")
    others = [log(store, "x", CONTENT, d=str(number)) for number in range(2, 5)]
    others.append(log(store, "y", CONTENT))
    log(store, "x", {"other": b"latest"})
    log(store, "y", {"other": b"latest"})
    for version in (first, *others):
        for record in store.catalog.bytes.held_objects(version.uid):
            for blob in store.catalog.bytes.blobs_in(record.name):
                damage(store, blob)
                break
    assert len(store.verify().damaged) >= 5
    log(store, "z", CONTENT)
    assert store.verify().damaged == ()
    # Once: nothing is written for them again.
    size = store.catalog.bytes.held_objects(first.uid)
    assert log(store, "z", CONTENT).is_new is False
    assert store.catalog.bytes.held_objects(first.uid) == size


def test_a_version_that_was_deleted_or_lost_its_bytes_on_purpose_is_left_so(
    store: begat.Store,
) -> None:
    gone, deleted = log(store, "x", CONTENT, d="1"), log(store, "x", CONTENT, d="2")
    log(store, "x", {"other": b"latest"})
    damage(store, blob_of(store, gone, "record"))
    store.verify()
    store.catalog.labels.retire(gone.uid, by="")
    store.delete(deleted.ref)
    store.gc(dry_run=False)
    log(store, "z", CONTENT)
    states = [store.catalog.versions.get(v.uid).state for v in (gone, deleted)]
    assert states == ["bytes-gone", "deleted"]
    assert store.catalog.bytes.held_objects(gone.uid) == []
    assert store.verify().damaged == ()
