"""Damage is named, never handed out, and healed by logging the same content again."""

import contextlib
import errno
import os
import random
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import begat
from begat.errors import Corrupt, ObjectMissing, StoreUnavailable
from begat.model import BlobLocation, StoredFile
from trees import MIB

RANDOM = random.Random(5)
BASE = RANDOM.randbytes(8 * MIB)
CONTENT = {
    "a.txt": b"small",
    "b.csv": b"compressible\n" * 1000,
    "sub/large.bin": RANDOM.randbytes(2 * MIB),  # an object of its own
    "sub/grown.bin": BASE + RANDOM.randbytes(MIB),  # by parts, most of which another file brought
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store(tmp_path / "s") as opened:
        opened.log_artifact("base", BASE)
        with opened.start_run("r", params={"lr": 1}) as run:
            run.log_artifact(draft())
        yield opened


def draft() -> begat.Artifact:
    artifact = begat.Artifact("x", metadata={"m": 1})
    for path, data in CONTENT.items():
        artifact.add(data, path)
    return artifact


def object_path(store: begat.Store, name: str) -> Path:
    return store.path / "objects" / name


def places(store: begat.Store, kind: str) -> list[BlobLocation]:
    return [
        blob
        for record in store.catalog.bytes.all_objects()
        for blob in store.catalog.bytes.blobs_in(record.name)
        if blob.kind == kind
    ]


def change(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    path.chmod(0o444)


def read_all(version: begat.Version) -> dict[str, str]:
    """For each file whether it reads right; wrong bytes fail the test."""
    found: dict[str, str] = {}
    for path, data in CONTENT.items():
        try:
            assert version.read_bytes(path) == data
            found[path] = "right"
        except Corrupt:
            found[path] = "refused"
    return found


def heal(store: begat.Store) -> None:
    """Log the same content again, and see that everything is well."""
    store.log_artifact("base", BASE)
    again = store.log_artifact(draft())
    assert not again.is_new
    assert store.verify().damaged == ()
    assert set(read_all(again).values()) == {"right"}
    assert [v.number for v in store.versions("x")] == [1]


def test_a_sound_store_has_no_damage(store: begat.Store) -> None:
    report = store.verify()
    assert report.is_sound
    assert report.checked_versions == 2
    assert report.checked_objects == len(list(store.catalog.bytes.all_objects()))
    assert report.checked_bytes == sum(size for _, size in store.objects.list())
    assert store.verify("x").is_sound
    assert store.get_artifact("x").verify() == ()


def test_a_large_object_is_not_read_into_memory_to_verify_it(tmp_path: Path) -> None:
    size_bytes = 48 * MIB
    with begat.open_store(tmp_path / "large") as store:
        store.log_artifact("large", RANDOM.randbytes(size_bytes))
        [whole] = [blob for blob in places(store, "file") if blob.stored_length == size_bytes]
        tracemalloc.start()
        try:
            assert store.verify().is_sound
            assert tracemalloc.get_traced_memory()[1] < 20 * MIB
        finally:
            tracemalloc.stop()
        change(object_path(store, whole.object), size_bytes - 1)
        assert [one.place for one in store.verify().damaged] == ["large:v1/large"]


KINDS = ["file", "part", "page", "root", "record", "run", "recipe"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_bit_in_any_kind_of_blob_is_named_and_healed(
    store: begat.Store, kind: str
) -> None:
    version = store.get_artifact("x")
    held = {record.name for record in store.catalog.bytes.held_objects(version.uid)}
    base = store.get_artifact("base")
    for place in [one for one in places(store, kind) if one.object in held]:
        if not object_path(store, place.object).exists():
            continue  # it was healed into another place
        change(object_path(store, place.object), place.offset + place.stored_length // 2)
        damaged = store.verify().damaged
        assert damaged, place
        assert all(one.place.startswith((version.ref, base.ref, place.object)) for one in damaged)
        if kind in ("root", "page"):
            with pytest.raises(Corrupt, match=r"^(x|base):v1"):
                for one in (version, base):
                    store.get_artifact(one.ref).entries  # noqa: B018
        else:
            read_all(store.get_artifact("x"))
        heal(store)


def test_a_damaged_file_is_named_with_version_and_path(store: begat.Store) -> None:
    [place] = [p for p in places(store, "file") if p.stored_length == 2 * MIB]
    change(object_path(store, place.object), 12345)
    version = store.get_artifact("x")
    with pytest.raises(Corrupt, match=r"^x:v1"):
        version.read_bytes("sub/large.bin")
    assert [(d.place, d.object) for d in store.verify().damaged] == [
        ("x:v1/sub/large.bin", place.object)
    ]
    assert [damage.place for damage in store.verify("x").damaged] == ["x:v1/sub/large.bin"]
    with pytest.raises(Corrupt, match=r"sub/large\.bin"):
        version.download("d")
    assert not Path("d/sub/large.bin").exists()
    with pytest.raises(Corrupt):
        _ = version.path


@pytest.mark.parametrize(
    "how", ["flip", "cut", "grow", "empty", "delete", "swap", "folder", "link"]
)
def test_whatever_is_done_to_an_object_is_named_and_healed(store: begat.Store, how: str) -> None:
    names = sorted(name for name, _ in store.objects.list())
    for number, name in enumerate(names):
        path = object_path(store, name)
        if not path.exists():
            continue
        other = object_path(store, next(one for one, _ in store.objects.list() if one != name))
        data = path.read_bytes()
        os.chmod(path, 0o644)
        if how == "flip":
            change(path, RANDOM.randrange(len(data)))
        elif how in ("cut", "grow", "empty"):
            path.write_bytes({"cut": data[:-1], "grow": data + b"\0", "empty": b""}[how])
        elif how == "swap":
            path.write_bytes(other.read_bytes())
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
            elif how == "link":
                (store.path / "elsewhere").write_bytes(data)
                path.symlink_to(store.path / "elsewhere")
        if number % 2:  # found by a reader first, or by verify
            with contextlib.suppress(Corrupt):
                read_all(store.get_artifact("x"))
        assert store.verify().damaged, name
        heal(store)
        if how == "folder":
            shutil.rmtree(path, ignore_errors=True)


def test_a_change_between_the_blobs_is_named_too(store: begat.Store) -> None:
    [record] = [
        p for p in places(store, "record") if p.object in {q.object for q in places(store, "run")}
    ]
    path = object_path(store, record.object)
    change(path, path.stat().st_size - 5)  # in the footer of the pack: a rebuild would not find it
    assert [damage.object for damage in store.verify().damaged] == [record.object]
    assert set(read_all(store.get_artifact("x")).values()) == {"right"}
    heal(store)


def test_what_is_sound_in_a_damaged_pack_is_still_read(store: begat.Store) -> None:
    [place] = [p for p in places(store, "file") if p.raw_length == 5]
    change(object_path(store, place.object), place.offset)
    version = store.get_artifact("x")
    assert read_all(version) == {
        path: "refused" if path == "a.txt" else "right" for path in CONTENT
    }
    assert not object_path(store, place.object).exists()
    assert any((store.path / "damaged").iterdir())
    # Also by somebody who opens the store later, and by a log of an unchanged part.
    with begat.open_store(store.path) as other:
        assert read_all(other.get_artifact("x"))["b.csv"] == "right"
        assert [damage.place for damage in other.verify().damaged] == ["x:v1/a.txt"]
    with pytest.raises(ObjectMissing, match="Add the file itself"):
        store.log_artifact(version.draft().add(b"more", "more"))
    heal(store)


def test_the_healed_copy_of_a_damaged_object_lets_gc_remove_it(store: begat.Store) -> None:
    [place] = [p for p in places(store, "file") if p.raw_length == 5]
    change(object_path(store, place.object), place.offset)
    store.verify()
    heal(store)
    store.gc(dry_run=False)
    assert list((store.path / "damaged").iterdir()) == []
    assert store.verify().is_sound
    assert set(read_all(store.get_artifact("x")).values()) == {"right"}


def test_a_healed_record_is_the_one_that_a_rebuild_reads(store: begat.Store) -> None:
    from begat.rebuild import rebuild_store

    version = store.get_artifact("x")
    version.add_aliases("best")
    run = version.produced_by
    assert run is not None
    [place] = [
        p
        for p in places(store, "record")
        if p.digest == store.catalog.versions.record_of(version.uid)
    ]
    change(object_path(store, place.object), place.offset)
    store.verify()
    heal(store)
    store.gc(dry_run=False)
    store.close()
    for leftover in store.path.glob("catalog.sqlite*"):
        leftover.unlink()
    assert rebuild_store(store.path).problems == ()
    with begat.open_store(store.path) as rebuilt:
        again = rebuilt.get_artifact("x:best")
        assert (again.uid, again.number, again.metadata) == (version.uid, 1, {"m": 1})
        assert again.produced_by == run
        assert run.params == {"lr": 1}


def test_healing_does_not_depend_on_the_version_that_brought_it(store: begat.Store) -> None:
    """The same file comes again by another name, cut in another way; then that version goes."""
    grown = CONTENT["sub/grown.bin"]
    base = [p for p in places(store, "file") if p.raw_length == len(BASE)]
    for place in base + [p for p in places(store, "part") if p.raw_length == MIB]:
        change(object_path(store, place.object), place.offset)
    store.verify()
    helper = store.log_artifact(begat.Artifact("helper").add(grown, "h.bin"))
    assert store.get_artifact("x").read_bytes("sub/grown.bin") == grown
    helper.delete()
    store.gc(dry_run=False)
    assert store.get_artifact("x").read_bytes("sub/grown.bin") == grown


def test_an_object_that_was_only_out_of_reach_is_offered_again(store: begat.Store) -> None:
    [place] = [p for p in places(store, "file") if p.stored_length == 2 * MIB]
    path = object_path(store, place.object)
    path.rename(store.path / "hidden")
    with pytest.raises(ObjectMissing):
        store.get_artifact("x").read_bytes("sub/large.bin")
    (store.path / "hidden").rename(path)
    assert store.verify().is_sound
    assert store.log_artifact("y", CONTENT["sub/large.bin"]).new_bytes < 2000


def test_a_disk_that_is_not_mounted_damages_nothing(store: begat.Store) -> None:
    (store.path / "objects").rename(store.path / "unmounted")
    for act in (
        lambda: store.get_artifact("x").read_bytes("a.txt"),
        lambda: store.log_artifact(draft()),
        lambda: store.verify(),
        lambda: store.gc(dry_run=False),
    ):
        with pytest.raises(StoreUnavailable):
            act()
    (store.path / "unmounted").rename(store.path / "objects")
    assert store.verify().is_sound
    assert {record.state for record in store.catalog.bytes.all_objects()} == {"live"}


def test_parts_of_a_verify_are_the_whole_of_it(store: begat.Store) -> None:
    for number in range(10):
        store.log_artifact("more", b"%d" % number)
    reports = [store.verify(subset=(n, 3)) for n in (1, 2, 3)]
    assert sum(report.checked_objects for report in reports) == store.verify().checked_objects
    [place] = [p for p in places(store, "file") if p.stored_length == 2 * MIB]
    change(object_path(store, place.object), 99)
    assert [len(store.verify(subset=(n, 3)).damaged) for n in (1, 2, 3)].count(0) < 3
    for bad in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="subset"):
            store.verify(subset=bad)


def test_a_damaged_catalog_is_named(store: begat.Store) -> None:
    import sqlite3

    store.close()
    with sqlite3.connect(store.path / "catalog.sqlite") as connection:
        connection.execute("DELETE FROM objects WHERE name IN (SELECT name FROM objects LIMIT 1)")
    connection.close()
    assert any(damage.place == "catalog" for damage in store.verify().damaged)


# --- what a disk has lost, it tells by an error of its own ---


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Objects, by name, that cannot be read any more, as if their sectors were gone."""
    found: set[str] = set()
    pread, copy_file_range, preadv = os.pread, os.copy_file_range, os.preadv

    def check(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if any(name.endswith(each.partition("/")[2]) for each in found):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def bad_pread(fd: int, *args: int) -> bytes:
        check(fd)
        return pread(fd, *args)

    def bad_preadv(fd: int, *args: Any) -> int:
        check(fd)
        return preadv(fd, *args)

    def bad_copy(source: int, *args: int, **how: int) -> int:
        check(source)
        return copy_file_range(source, *args, **how)

    monkeypatch.setattr(os, "pread", bad_pread)
    monkeypatch.setattr(os, "preadv", bad_preadv)
    monkeypatch.setattr(os, "copy_file_range", bad_copy)
    return found


@pytest.mark.parametrize("path", CONTENT)
def test_an_object_that_its_disk_cannot_read_is_named_and_mended(
    store: begat.Store, lost: set[str], path: str, tmp_path: Path
) -> None:
    version = store.get_artifact("x")
    entry = next(entry for entry in version.files() if entry.path == path)
    assert isinstance(entry, StoredFile)
    place = store.catalog.bytes.locations([entry.digest]).get(entry.digest)
    [name] = [place.object] if place else {b.object for b in places(store, "root")[-1:]}
    lost.add(name)
    found = store.verify().damaged
    assert {each.object for each in found} >= {name}
    assert store.verify().damaged != ()  # it was looked at to its end, and is looked at each time
    assert not store.log_artifact(draft()).is_new
    assert not store.log_artifact("base", BASE).is_new  # its end is not in any other file
    assert store.verify().damaged == ()
    assert store.get_artifact("x").read_bytes(path) == CONTENT[path]
    folder = store.get_artifact("x").download(tmp_path / "d")
    assert {p: (folder / p).read_bytes() for p in CONTENT} == CONTENT


def test_a_file_that_its_disk_cannot_read_is_damaged_and_the_others_are_read(
    store: begat.Store, lost: set[str], tmp_path: Path
) -> None:
    version = store.get_artifact("x")
    entry = next(entry for entry in version.files() if entry.path == "sub/large.bin")
    assert isinstance(entry, StoredFile)
    lost.add(store.catalog.bytes.locations([entry.digest])[entry.digest].object)
    with pytest.raises(Corrupt, match="cannot be read"):
        version.read_bytes("sub/large.bin")
    with pytest.raises(Corrupt):
        version.download(tmp_path / "d")
    assert not (tmp_path / "d" / "sub" / "large.bin").exists()
    assert version.read_bytes("a.txt") == CONTENT["a.txt"]
    assert not store.log_artifact(draft()).is_new
    assert version.read_bytes("sub/large.bin") == CONTENT["sub/large.bin"]
