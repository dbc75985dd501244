"""Garbage collection removes what no version needs, says why the rest is kept, and breaks nobody's reading."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat import needs
from begat import sweep as sweep_module
from begat.catalog.commits import Commits
from begat.errors import BytesRetired, CatalogBusy, StoreUnavailable
from begat.identity import digest_of
from begat.manifest import decode_root
from begat.sweep import SweepReport
from trees import MIB, safetensors

RANDOM = random.Random(7)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


def on_disk(store: begat.Store) -> int:
    folders = [store.path / name for name in ("objects", "tmp", "damaged", "staging")]
    return sum(
        file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()
    )


def collect(store: begat.Store) -> SweepReport:
    """Collect garbage; what is said to be freed is what the disk gained."""
    before = on_disk(store)
    report = store.gc(dry_run=False, wait=10)
    assert before - on_disk(store) == report.freed_bytes
    assert store.verify().is_sound
    return report


def retire(store: begat.Store, *versions: begat.Version) -> None:
    for version in versions:
        store.catalog.labels.retire(version.uid, by="test")


def test_a_dry_run_says_what_would_go_and_changes_nothing(store: begat.Store) -> None:
    gone = store.log_artifact("x", RANDOM.randbytes(2 * MIB))
    store.log_artifact("x", b"latest")
    retire(store, gone)
    (store.path / "tmp/leftover").write_bytes(b"x" * 100)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in store.path.rglob("*") if p.is_file())
    dry = store.gc()
    after = sorted((str(p), p.stat().st_mtime_ns) for p in store.path.rglob("*") if p.is_file())
    assert [one for one in before if "sqlite" not in one[0]] == [
        one for one in after if "sqlite" not in one[0]
    ]
    assert dry.dry_run
    assert gone.state == "retired"
    real = collect(store)
    assert real.freed_bytes == dry.freed_bytes > 2 * MIB
    assert (
        {one.what for one in real.removed} == {one.what for one in dry.removed} >= {"x:v1", "tmp/"}
    )
    assert real.kept == dry.kept
    assert gone.state == "bytes-gone"


def test_what_is_kept_is_explained(store: begat.Store) -> None:
    versions = [store.log_artifact("x", b"%d" % n) for n in range(6)]
    retire(store, *versions[1:5])
    store.alias("x:v2", "best")
    versions[2].add_tags("paper")
    with store.start_run("r", uses=["x:v4"]) as run:
        pass
    kept = {one.ref: one.reason for one in collect(store).kept}
    assert kept.keys() == {"x:v1", "x:v2", "x:v3", "x:v4", "x:v6"}
    assert "nobody deleted it" in kept["x:v1"]
    assert "best" in kept["x:v2"]
    assert "paper" in kept["x:v3"]
    assert run.id in kept["x:v4"]
    assert "latest" in kept["x:v6"]
    assert versions[4].state == "bytes-gone"


def test_a_version_that_only_its_own_run_used_may_go(store: begat.Store) -> None:
    with store.start_run("r") as run:
        first = run.log_artifact("checkpoint", b"1")
        run.use_artifact("checkpoint")
        run.log_artifact("checkpoint", b"2")
    retire(store, first)
    collect(store)
    assert first.state == "bytes-gone"
    with pytest.raises(BytesRetired):
        _ = first.entries
    assert {v.ref for v in store.lineage("checkpoint:v2", "upstream").versions} == {
        "checkpoint:v1",
        "checkpoint:v2",
    }


def test_the_bytes_of_deleted_versions_go(store: begat.Store) -> None:
    version = store.log_artifact("x", RANDOM.randbytes(2 * MIB))
    version.delete()
    assert collect(store).freed_bytes > 2 * MIB
    assert on_disk(store) == 0


def test_shared_bytes_stay_as_long_as_one_version_needs_them(store: begat.Store) -> None:
    data = RANDOM.randbytes(2 * MIB)
    one, two = store.log_artifact("x", data), store.log_artifact("y", data)
    one.delete()
    collect(store)
    assert two.read_bytes("y") == data
    two.delete()
    collect(store)
    assert on_disk(store) == 0


def test_content_that_is_logged_again_after_its_bytes_went_lives_again(store: begat.Store) -> None:
    version = store.log_artifact("x", b"content")
    retire(store, version)
    collect(store)
    assert version.state == "bytes-gone"
    again = store.log_artifact("x", b"content")
    assert (again.is_new, again.uid, again.state) == (False, version.uid, "live")
    assert again.read_bytes("x") == b"content"
    collect(store)
    assert again.read_bytes("x") == b"content"


def test_content_is_logged_again_while_its_bytes_are_given_up_and_not_removed_yet(
    store: begat.Store,
) -> None:
    """Between two slices of gc, or after a gc that was killed there."""
    version = store.log_artifact("x", b"content")
    retire(store, version)
    assert store.catalog.labels.drop_bytes([version.uid], by="gc") == [version.uid]
    again = store.log_artifact("x", b"content")
    assert (again.is_new, again.uid, again.state) == (False, version.uid, "live")
    collect(store)
    assert again.read_bytes("x") == b"content"


def test_what_a_killed_log_left_goes(store: begat.Store) -> None:
    code = """
        import os, begat
        from begat import files
        store = begat.open_store()
        def fault(operation, path):
            if operation == KILL_AT[0] and KILL_AT[1] in path:
                os.kill(os.getpid(), 9)
        files.fault = fault
        store.log_artifact("x", bytes(range(256)) * 8192)
    """
    for kill_at in (("write", "tmp"), ("rename", "objects"), ("fsync-directory", "objects")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code).replace("KILL_AT", repr(kill_at))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
        )
        assert done.returncode == -signal.SIGKILL
        assert store.artifacts() == []
    assert on_disk(store) > 0
    assert collect(store).freed_bytes > 0
    assert on_disk(store) == 0


def test_files_that_are_not_objects_are_left_alone(store: begat.Store) -> None:
    (store.path / "objects/ab").mkdir(exist_ok=True)
    for name in ("objects/README", "objects/ab/notes.txt", "mine.txt"):
        (store.path / name).write_text("not yours")
    store.gc(dry_run=False)
    for name in ("objects/README", "objects/ab/notes.txt", "mine.txt"):
        assert (store.path / name).read_text() == "not yours"


def test_a_listing_that_fails_ends_gc_before_anything_is_removed(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("x", b"1").delete()
    before = on_disk(store)

    def fails(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", fails)
        with pytest.raises(begat.BegatError):
            store.gc(dry_run=False)
    (store.path / "objects").rename(store.path / "away")
    with pytest.raises(StoreUnavailable):
        store.gc(dry_run=False)
    (store.path / "away").rename(store.path / "objects")
    assert on_disk(store) == before


def test_gc_waits_for_nobody_unless_told_to_and_names_who_writes(store: begat.Store) -> None:
    store.log_artifact("x", b"1")
    started, end = threading.Event(), threading.Event()

    def write() -> None:
        with store.locks.writing():
            started.set()
            end.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    started.wait(30)
    with pytest.raises(CatalogBusy, match=str(os.getpid())):
        store.gc(dry_run=False)
    assert store.gc().dry_run  # a dry run needs no lock
    end.set()
    thread.join()
    store.gc(dry_run=False)


# --- packs that are mostly dead ---


def mostly_dead(store: begat.Store) -> tuple[begat.Version, bytes]:
    """A version that needs one small file of a pack of 3 MB, the rest of which nobody needs."""
    small = RANDOM.randbytes(1000)
    draft = begat.Artifact("x").add(small, "small")
    for number in range(3):
        draft.add(RANDOM.randbytes(MIB - 1), f"dead{number}")
    first = store.log_artifact(draft)
    kept = store.log_artifact(begat.Artifact("x").add(small, "small"))
    first.delete()
    return kept, small


def test_a_pack_that_is_mostly_dead_is_written_anew(store: begat.Store) -> None:
    kept, small = mostly_dead(store)
    dry = store.gc()
    report = collect(store)
    assert report.freed_bytes > 3 * (MIB - 1) - 10_000
    assert abs(dry.freed_bytes - report.freed_bytes) < 2000
    assert on_disk(store) < 10_000
    assert kept.read_bytes("small") == small
    assert collect(store).freed_bytes == 0
    assert not store.log_artifact(kept.draft()).is_new


def packs(store: begat.Store) -> dict[str, int]:
    return dict(store._objects.list())


def some_alive(
    store: begat.Store, count: int, *, dead_bytes: int = 20_000
) -> dict[begat.Version, bytes]:
    """Versions that each need one small file of a pack of their own, the rest of which nobody needs."""
    kept: dict[begat.Version, bytes] = {}
    for number in range(count):
        small = RANDOM.randbytes(500)
        name = f"n{number}"
        draft = begat.Artifact(name).add(small, "small").add(RANDOM.randbytes(dead_bytes), "dead")
        first = store.log_artifact(draft)
        kept[store.log_artifact(begat.Artifact(name).add(small, "small"))] = small
        first.delete()
    return kept


def test_packs_that_are_each_a_bit_alive_become_one(store: begat.Store) -> None:
    kept = some_alive(store, 12)
    before = packs(store)
    large = [name for name, size in before.items() if size > 20_000]
    dry = store.gc()
    report = collect(store)
    assert len(large) == 12
    after = packs(store)
    assert not after.keys() & set(large)
    assert len(after.keys() - before.keys()) == 1
    assert abs(dry.freed_bytes - report.freed_bytes) < 12 * 50  # one footer instead of twelve
    assert {version: version.read_bytes("small") for version in kept} == kept
    assert collect(store).removed == ()


def test_a_new_pack_is_closed_when_it_is_full(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "TARGET_BYTES", 2_600)
    monkeypatch.setattr(
        sweep_module, "ROUND_BLOBS", 7
    )  # several rounds, each with its own removals
    kept = some_alive(store, 12)
    before = packs(store)
    collect(store)
    new = packs(store).keys() - before.keys()
    assert 2 <= len(new) <= 12
    assert {version: version.read_bytes("small") for version in kept} == kept


def test_a_pack_with_a_long_index_is_not_written_anew_for_ever(store: begat.Store) -> None:
    # Blobs of a few bytes: the index is by far the most of the pack, and none of it is dead.
    draft = begat.Artifact("x")
    for number in range(300):
        draft.add(b"%d" % number, f"f{number}")
    store.log_artifact(draft)
    before = packs(store)
    assert collect(store).removed == ()
    assert packs(store) == before


def test_a_damaged_blob_keeps_its_pack_and_no_other(store: begat.Store) -> None:
    kept = some_alive(store, 3)
    broken, *sound = kept
    [entry] = broken.entries
    assert isinstance(entry, begat.StoredFile)
    [place] = store.catalog.bytes.locations([entry.digest]).values()
    path = store.path / "objects" / place.object
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place.offset + 10)
        file.write(b"damaged")
    before = on_disk(store)
    report = store.gc(dry_run=False, wait=10)
    assert before - on_disk(store) == report.freed_bytes > 2 * 19_000
    assert path.exists()
    assert {version: version.read_bytes("small") for version in sound} == {
        version: kept[version] for version in sound
    }


def test_of_an_unreadable_version_nothing_is_taken_for_dead(store: begat.Store) -> None:
    kept = some_alive(store, 2)
    broken, sound = kept
    [entry] = broken.entries
    assert isinstance(entry, begat.StoredFile)
    root = store.catalog.versions.get(broken.uid).root
    [place] = store.catalog.bytes.locations([root]).values()
    path = store.path / "objects" / place.object
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(b"damaged")
    [small] = store.catalog.bytes.locations([entry.digest]).values()
    store.gc(dry_run=False, wait=10)
    assert (store.path / "objects" / small.object).exists()
    assert store.reader().read(entry.digest) == kept[broken]
    assert sound.read_bytes("small") == kept[sound]


def test_pages_that_versions_share_are_read_once(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = begat.Artifact("x")
    for number in range(6000):
        draft.add(b"1", f"{number}")
    for number in range(5):
        version = store.log_artifact(draft.add(b"%d" % number, "zz", overwrite=number > 0))
        draft = version.draft()
    count = 0
    decode = needs.decode_page

    def counted(data: bytes) -> list[begat.Entry]:
        nonlocal count
        count += 1
        return decode(data)

    monkeypatch.setattr(needs, "decode_page", counted)
    store.gc()
    roots = [store.catalog.versions.get(v.uid).root for v in store.versions("x")]
    every = [page.digest for root in roots for page in decode_root(store.reader().read(root)).pages]
    assert count == len(set(every)) < len(every)


def test_a_reader_that_looked_up_a_place_before_a_repack_finds_the_new_one(
    store: begat.Store,
) -> None:
    kept, small = mostly_dead(store)
    [entry] = kept.entries
    assert isinstance(entry, begat.StoredFile)
    reader = store.reader()
    reader.prefetch([entry.digest])
    store.gc(dry_run=False)
    assert reader.read(entry.digest) == small
    assert {record.state for record in store.catalog.bytes.all_objects()} == {"live"}


def test_readers_never_fail_while_packs_are_written_anew(store: begat.Store) -> None:
    failures: list[BaseException] = []
    done = threading.Event()
    kept: list[tuple[begat.Version, bytes]] = [mostly_dead(store)]

    def read() -> None:
        while not done.is_set():
            for version, small in list(kept):
                try:
                    assert version.read_bytes("small") == small
                except Exception as error:  # noqa: BLE001 - told by the thread that asserts
                    failures.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        version, small = mostly_dead(store)
        kept.append((version, small))
        store.gc(dry_run=False, wait=10)
        assert len(kept) == number + 2
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.verify().is_sound


def test_a_pack_that_is_needed_again_meanwhile_is_not_written_anew(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gc's look and its turn, a log comes to rely on what seemed dead."""
    kept, small = mostly_dead(store)
    original = sweep_module._Sweep._copied
    logged: list[begat.Version] = []
    dead = {"again": b""}
    for record in store.catalog.bytes.all_objects():
        for blob in store.catalog.bytes.blobs_in(record.name):
            if blob.raw_length == MIB - 1:
                dead["again"] = store.reader().read(blob.digest)

    def copied(self, waiting, plan):
        logged.append(store.log_artifact("y", dead["again"]))
        return original(self, waiting, plan)

    monkeypatch.setattr(sweep_module._Sweep, "_copied", copied)
    store.gc(dry_run=False, wait=10)
    assert store.verify().is_sound
    assert logged[0].new_bytes < 2000
    assert logged[0].read_bytes("y") == dead["again"]
    assert kept.read_bytes("small") == small


def test_a_retired_version_that_is_named_again_meanwhile_keeps_its_bytes(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes lie in a pack that gc has begun to write anew without them."""
    data = {f"dead{n}": RANDOM.randbytes(MIB - 1) for n in range(3)}
    small = RANDOM.randbytes(100)
    draft = begat.Artifact("x").add(small, "small")
    for path, content in data.items():
        draft.add(content, path)
    first = store.log_artifact(draft)
    kept = store.log_artifact(begat.Artifact("x").add(small, "small"))
    retire(store, first)
    original = sweep_module._Sweep._copied

    def copied(self, waiting, plan):
        done = original(self, waiting, plan)
        store.alias("x:v1", "best")
        return done

    monkeypatch.setattr(sweep_module._Sweep, "_copied", copied)
    collect(store)
    assert first.state == "retired"
    assert {path: first.read_bytes(path) for path in data} == data
    assert kept.read_bytes("small") == small


# --- one file, stored in two ways ---


def test_a_file_that_two_writers_cut_differently_outlives_either(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [RANDOM.randbytes(2 * MIB) for _ in range(3)]
    file = safetensors(tensors)
    # Much of it is known in either way of cutting, so that each stores only parts.
    store.log_artifact("known", file[: 4 * MIB])
    store.log_artifact(begat.Artifact("known2").add(safetensors(tensors[:2]), "k.safetensors"))
    original = Commits.commit
    inner: list[begat.Version] = []

    def commit(self, new):
        if not inner:
            monkeypatch.setattr(Commits, "commit", original)
            inner.append(store.log_artifact(begat.Artifact("inner").add(file, "f.bin")))
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    outer = store.log_artifact(begat.Artifact("outer").add(file, "f.safetensors"))
    assert max(outer.new_bytes, inner[0].new_bytes) < 4 * MIB
    for name in ("known", "known2"):
        store.get_artifact(name).delete()
    outer.delete()
    collect(store)
    assert inner[0].read_bytes("f.bin") == file
    again = store.log_artifact(begat.Artifact("outer").add(file, "f.safetensors"))
    inner[0].delete()
    collect(store)
    assert again.read_bytes("f.safetensors") == file


def test_parts_of_a_file_that_was_stored_in_another_way_meanwhile_are_kept(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gc's copy and its move a log gives a file a new recipe, of parts that nobody needed, and is deleted."""
    tensors = [RANDOM.randbytes(2 * MIB) for _ in range(3)]
    file, small = safetensors(tensors), RANDOM.randbytes(100)
    store.log_artifact("known", file[: 4 * MIB])
    store.log_artifact(begat.Artifact("known2").add(safetensors(tensors[:2]), "k.safetensors"))
    # Its new parts, cut by content, lie in one pack with the small file.
    dead = store.log_artifact(begat.Artifact("dead").add(small, "s").add(file[:-1], "d.bin"))
    original = Commits.commit
    is_staged, may_commit = threading.Event(), threading.Event()

    def commit(self, new):
        if new.name == "late":
            is_staged.set()
            assert may_commit.wait(60)
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    late: list[begat.Version] = []
    draft = begat.Artifact("late").add(file, "f.bin")
    thread = threading.Thread(target=lambda: late.append(store.log_artifact(draft)))
    thread.start()
    assert is_staged.wait(60)
    kept = store.log_artifact(begat.Artifact("kept").add(small, "s").add(file, "f.safetensors"))
    dead.delete()
    copy = sweep_module._Sweep._copied
    rounds: list[int] = []

    def copied(self, waiting, plan):
        done = copy(self, waiting, plan)
        rounds.append(len(done.packs))
        if not late:
            may_commit.set()
            thread.join()
            late[0].delete()
        return done

    monkeypatch.setattr(sweep_module._Sweep, "_copied", copied)
    recipe_of = store.catalog.bytes.recipes
    before = recipe_of([digest_of(file)])
    collect(store)
    assert rounds == [1]
    assert recipe_of([digest_of(file)]) != before
    assert late[0].new_bytes < MIB  # its parts were there
    assert kept.read_bytes("f.safetensors") == file
    collect(store)
    assert kept.read_bytes("f.safetensors") == file


# --- writers and gc, as processes ---


def test_writers_and_gc_in_other_processes_break_nothing(store: begat.Store) -> None:
    writer = """
        import random, sys, begat
        store = begat.open_store()
        chance = random.Random(int(sys.argv[1]))
        pool = [random.Random(n).randbytes(300_000) for n in range(6)]
        for number in range(12):
            draft = begat.Artifact("x")
            for name in "abcd":
                draft.add(chance.choice(pool), name)
            version = store.log_artifact(draft, if_unchanged="new")
            assert {e.path for e in version.files()} == set("abcd")
            if chance.random() < 0.5:
                version.delete()
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(writer), str(number)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    collected = 0
    while any(process.poll() is None for process in started):
        store.gc(dry_run=False, wait=30)
        collected += 1
    for process in started:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert collected >= 2
    assert [v.number for v in store.versions("x", with_deleted=True)] == list(range(1, 37))
    collect(store)
    for version in store.versions("x"):
        assert len(version.read_bytes("a")) == 300_000
