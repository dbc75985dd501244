"""The stat cache: what is as it was is not read again, and nothing that changed is ever taken for what it was."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import begat
from begat import snapshot, statcache, walk
from begat.catalog import StageAgain
from begat.catalog.commits import Commits
from begat.config import cache_directory
from begat.errors import BadPath, DigestMismatch
from begat.model import Commit, Digest, NewVersion
from begat.statcache import UNKNOWN, Block, Clock, StatCache
from trees import MIB, File, Tree, make, memory_folder, seen

DIGESTS = random.Random(1).randbytes(32 * 64)
CONTENT = Digest("b3:" + "1" * 64)
FILES: Tree = {
    "a": File(10, 0),
    "b/c": File(3 * MIB, 2),
    "b/d": File(20, 1),
    "b/e/f": File(0, 0),
    "b-": File(30, 3),
}


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough at once. Tests wait a little between two writes to a file, as any clock ticks."""
    monkeypatch.setattr(statcache, "YOUNG_NS", -10 * 10**9)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were opened to be read, as they come."""
    names: list[str] = []
    original = snapshot.open_source

    def open_source(path: str | Path, **options: int) -> int:
        names.append(Path(path).name)
        return original(path, **options)

    monkeypatch.setattr(snapshot, "open_source", open_source)
    return names


@pytest.fixture
def known(
    store: begat.Store, tmp_path: Path, trusting: None, read: list[str]
) -> tuple[begat.Store, Path, list[str]]:
    """A folder that was logged as `x:v1`, and is known."""
    root = make(FILES, tmp_path / "d")
    store.log_artifact("x", root)
    assert sorted(read) == ["a", "b-", "c", "d", "f"]
    read.clear()
    time.sleep(0.02)
    return store, root, read


Known = tuple[begat.Store, Path, list[str]]


def same(version: begat.Version, root: Path) -> bool:
    """Whether a version is what is in a folder."""
    found = seen(version.download(root.parent / f"out-{version.number}-{random.random()}"))
    return found == seen(root)


def kept_file() -> Path:
    [rows] = statcache.kept_rows(cache_directory())
    return rows.path


# --- what is as it was is not read ---


def test_an_unchanged_folder_is_recognised_without_reading_or_writing(known: Known) -> None:
    store, root, read = known
    before = kept_file().stat()
    version = store.log_artifact("x", root)
    assert (version.ref, version.is_new, read) == ("x:v1", False, [])
    assert kept_file().stat() == before


def test_only_what_changed_is_read(known: Known) -> None:
    store, root, read = known
    (root / "b/d").write_bytes(b"other")
    (root / "new").write_bytes(b"new")
    version = store.log_artifact("x", root)
    assert (version.number, read) == (2, ["d", "new"])
    assert same(version, root)
    read.clear()
    assert not store.log_artifact("x", root).is_new
    assert read == []


def test_another_artifact_shares_what_is_known(known: Known) -> None:
    store, root, read = known
    version = store.log_artifact("y", root)
    assert (version.is_new, version.new_bytes < 10_000, read) == (True, True, [])
    assert same(version, root)


def test_labels_and_edges_come_to_a_version_that_was_recognised(known: Known) -> None:
    store, root, read = known
    with store.start_run("check") as run:
        version = run.log_artifact(
            "x", root, aliases=["best"], tags=["good"], bump="minor", description="it"
        )
        assert [edge.kind for edge in run.edges] == ["confirmed"]
    assert (version.number, version.aliases, version.tags) == (1, ("best", "latest"), ("good",))
    assert (version.version, version.description, read) == ("0.1.0", "it", [])


def test_a_link_to_a_folder_is_the_same_folder(known: Known) -> None:
    store, root, read = known
    (root.parent / "link").symlink_to(root)
    assert not store.log_artifact("x", root.parent / "link").is_new
    assert read == []


def test_rows_of_one_store_say_nothing_to_another(known: Known, tmp_path: Path) -> None:
    _, root, read = known
    with begat.open_store(tmp_path / "other") as other:
        assert same(other.log_artifact("x", root), root)
    assert len(read) == 5


# --- what changed is never taken for what it was ---


def rewritten(root: Path) -> None:
    """Other bytes, the same size and modification time."""
    times = (root / "a").stat()
    (root / "a").write_bytes(b"x" * 10)
    os.utime(root / "a", ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(root: Path) -> None:
    (root / "other").write_bytes(b"y" * 10)
    times = (root / "a").stat()
    os.utime(root / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / "other").replace(root / "a")


def exchanged(root: Path) -> None:
    (root / "a").rename(root / "t")
    (root / "b/d").rename(root / "a")
    (root / "t").rename(root / "b/d")


def folder_exchanged(root: Path) -> None:
    """Another folder, whose files have the same names, sizes and modification times."""
    other = make({"c": File(3 * MIB, 4), "d": File(20, 5), "e/f": File(0, 0)}, root / "other")
    for name in ("c", "d"):
        times = (root / "b" / name).stat()
        os.utime(other / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / "b").rename(root.parent / "away")
    other.rename(root / "b")


def linked(root: Path) -> None:
    (root / "a").unlink()
    (root / "a").symlink_to("b/d")


CHANGES: list[Callable[[Path], object]] = [
    rewritten,
    replaced,
    exchanged,
    folder_exchanged,
    linked,
    lambda root: (root / "a").chmod(0o755),
    lambda root: (root / "a").unlink(),
    lambda root: (root / "a").rename(root / "A"),
    lambda root: (root / "b/empty").mkdir(),
    lambda root: (root / "b/e/f").unlink(),
    lambda root: (root / "b").rename(root / "bb"),
    lambda root: (root / "z").write_bytes(b""),
    lambda root: (root / ".begatignore").write_text("a\n"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_makes_a_version_of_what_is_there_now(
    known: Known, change: Callable[[Path], object]
) -> None:
    store, root, _ = known
    change(root)
    version = store.log_artifact("x", root)
    if (root / ".begatignore").exists():
        (root / "a").unlink()
    assert version.number == 2
    assert same(version, root)
    assert store.log_artifact("x", root, stat_cache=False).digest == version.digest


@pytest.mark.parametrize(
    "options",
    [
        {"include": "b/**"},
        {"exclude": "a"},
        {"metadata": {"rows": 3}},
        {"if_unchanged": "new"},
    ],
)
def test_what_is_asked_for_otherwise_is_another_version(
    known: Known, options: dict[str, object], tmp_path: Path
) -> None:
    store, root, read = known
    version = store.log_artifact("x", root, **options)  # type: ignore[arg-type]
    assert (version.number, version.is_new, read) == (2, True, [])
    with begat.open_store(tmp_path / "other") as other:
        assert other.log_artifact("x", root, **options).digest == version.digest  # type: ignore[arg-type]


def test_drafts_are_more_than_a_folder(known: Known) -> None:
    store, root, read = known
    drafts = [
        begat.Artifact("x").add(root).add(b"more", "z"),
        begat.Artifact("x").add(root).add(b"other", "a", overwrite=True),
        begat.Artifact("x").add(root).remove("b"),
        begat.Artifact("x").add(root, "below"),
        begat.Artifact("x").add(root, metadata={"of": "entry"}),
        begat.Artifact("x").add(root).add(root, "twice"),
    ]
    versions = [store.log_artifact(draft) for draft in drafts]
    assert [version.number for version in versions] == [2, 3, 4, 5, 6, 7]
    assert set(read) <= {"a", "b-", "c", "d", "f"}
    assert versions[0].read_bytes("z") == b"more"
    assert versions[1].read_bytes("a") == b"other"
    assert [entry.path for entry in versions[2].entries] == ["a", "b-"]
    assert versions[3].read_bytes("below/b/d") == versions[5].read_bytes("twice/b/d")
    assert versions[4].entries[0].metadata == {"of": "entry"}
    read.clear()
    for draft in drafts:  # what is known of the draft itself is not believed twice
        store.log_artifact(draft)
    (root / "a").write_bytes(b"now")
    assert store.log_artifact(begat.Artifact("x").add(root)).read_bytes("a") == b"now"


def test_links_that_are_followed_are_not_links_that_are_kept(known: Known) -> None:
    store, root, _ = known
    (root / "file").symlink_to("b/d")
    (root / "folder").symlink_to("b")
    kept = store.log_artifact("x", root)
    followed = store.log_artifact("x", root, symlinks="follow")
    again = store.log_artifact("x", root)
    assert kept.digest == again.digest != followed.digest
    assert followed.read_bytes("folder/d") == followed.read_bytes("file") == File(20, 1).data
    (root / "file").unlink()
    (root / "file").symlink_to("b/e/f")
    assert store.log_artifact("x", root, symlinks="follow").read_bytes("file") == b""


def test_a_file_that_changes_after_its_folder_was_added_is_read(known: Known) -> None:
    store, root, read = known
    draft = begat.Artifact("x").add(root)
    (root / "a").write_bytes(b"since then")
    version = store.log_artifact(draft)
    assert (version.read_bytes("a"), read) == (b"since then", ["a"])


def test_what_is_no_longer_as_it_was_listed_is_not_remembered(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root, _ = known
    (root / "a").write_bytes(b"first one")
    original = snapshot.open_source

    def open_source(path: str | Path, **options: int) -> int:
        (root / "a").rename(root.parent / "kept")
        (root / "a").write_bytes(b"other one")
        return original(path, **options)

    monkeypatch.setattr(snapshot, "open_source", open_source)
    assert store.log_artifact("x", root).read_bytes("a") == b"other one"
    monkeypatch.setattr(snapshot, "open_source", original)
    (root.parent / "kept").replace(root / "a")
    assert store.log_artifact("x", root).read_bytes("a") == b"first one"


# --- what a file is known to hold may no longer be stored ---


def objects_of(store: begat.Store) -> list[Path]:
    return [path for path in (store.path / "objects").rglob("*") if path.is_file()]


@pytest.mark.parametrize("how", ["gone", "shorter", "found out"])
def test_bytes_that_are_damaged_are_read_and_stored_again(known: Known, how: str) -> None:
    store, root, read = known
    for path in objects_of(store):
        path.chmod(0o644)
        if how == "gone":
            path.unlink()
        elif how == "shorter":
            os.truncate(path, path.stat().st_size - 1)
        else:
            path.write_bytes(bytes(path.stat().st_size))
    if how == "found out":
        assert not store.verify().is_sound
    version = store.log_artifact("x", root)
    assert (version.ref, version.is_new, len(read)) == ("x:v1", False, 5)
    assert store.verify().is_sound
    assert same(version, root)


def test_bytes_that_garbage_collection_took_are_read_and_stored_again(known: Known) -> None:
    store, root, read = known
    store.log_artifact("x", b"something else")
    store.delete("x:v1")
    store.gc(dry_run=False)
    version = store.log_artifact("x", root)
    assert (version.number, len(read)) == (3, 5)
    assert same(version, root)
    assert store.verify().is_sound


def test_a_retired_version_is_live_again(known: Known) -> None:
    store, root, read = known
    uid = store.get_artifact("x").uid
    store.catalog.labels.retire(uid, by="test")
    assert store.log_artifact("x", root).state == "live"
    assert read == []
    store.catalog.labels.retire(uid, by="test")
    store.gc(dry_run=False)
    assert store.get_artifact("x").state == "bytes-gone"
    version = store.log_artifact("x", root)
    assert (version.ref, version.state, len(read)) == ("x:v1", "live", 5)
    assert same(version, root)


def test_a_log_that_is_overtaken_looks_again(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    store, root, read = known
    original = Commits.commit

    def commit(self: Commits, new: NewVersion) -> Commit:
        monkeypatch.setattr(Commits, "commit", original)
        assert new.recognised is not None
        with begat.open_store() as other:
            other.log_artifact("x", b"faster")
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    version = store.log_artifact("x", root)
    assert (version.number, version.is_new, read) == (3, True, [])
    assert same(version, root)


def test_an_object_that_is_found_damaged_meanwhile_is_stored_again(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root, read = known
    original = Commits.commit
    again: list[bool] = []

    def commit(self: Commits, new: NewVersion) -> Commit:
        monkeypatch.setattr(Commits, "commit", original)
        for held in store.catalog.bytes.held_objects(store.get_artifact("x").uid):
            store.catalog.bytes.mark_damaged(held.name)
        try:
            return original(self, new)
        except StageAgain:
            again.append(True)
            raise

    monkeypatch.setattr(Commits, "commit", commit)
    version = store.log_artifact("x", root)
    assert (version.ref, again, len(read)) == ("x:v1", [True], 5)
    assert store.verify().is_sound


def test_another_digest_than_expected_makes_no_version(known: Known) -> None:
    store, root, _ = known
    digest = store.get_artifact("x").digest
    with pytest.raises(DigestMismatch):
        store.log_artifact(begat.Artifact("x", expected_digest="b3:" + "0" * 64).add(root))
    assert not store.log_artifact(begat.Artifact("x", expected_digest=digest).add(root)).is_new


def test_names_that_clash_are_told_each_time(known: Known) -> None:
    store, root, read = known
    (root / "A").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(begat.BegatWarning, match="case-insensitive"):
            store.log_artifact("x", root)
        with pytest.raises(BadPath, match="case-insensitive"):
            store.log_artifact("x", root, portable=True)
    assert read == ["A"]


# --- files that are too young ---


def test_a_file_that_was_changed_just_before_is_read_again(
    store: begat.Store, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(FILES, tmp_path / "d")
    time.sleep(2.1)
    (root / "a").write_bytes(b"now")
    store.log_artifact("x", root)
    read.clear()
    store.log_artifact("x", root)
    assert read == ["a"]
    time.sleep(2.1)
    store.log_artifact("x", root)
    assert read == ["a", "a"]
    store.log_artifact("x", root)
    assert read == ["a", "a"]


def test_nothing_is_kept_of_a_folder_that_is_young_as_a_whole(
    store: begat.Store, tmp_path: Path
) -> None:
    store.log_artifact("x", make(FILES, tmp_path / "d"))
    assert statcache.kept_rows(cache_directory()) == []


def test_the_clock_is_that_of_the_file_system_where_a_file_may_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StatCache(tmp_path / "cache", "uid", probes=(tmp_path,))
    now = time.time_ns()
    assert abs(cache.clock(str(tmp_path)).trusted_before_ns - now + statcache.YOUNG_NS) < 10**9
    # Elsewhere it is ours, which may differ from it.
    elsewhere = StatCache(tmp_path / "cache", "uid", probes=(Path("/proc"), tmp_path / "none"))
    clock = elsewhere.clock(str(tmp_path))
    assert clock.trusted_before_ns <= time.time_ns() - statcache.YOUNG_BY_OUR_CLOCK_NS
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_file_system_below_are_trusted_later() -> None:
    clock = Clock(1, trusted_before_ns=100 * 10**9)
    assert clock.is_old(statcache.Seen(0, 99 * 10**9, 99 * 10**9, 1, 1, 0))
    assert not clock.is_old(statcache.Seen(0, 100 * 10**9, 99 * 10**9, 1, 1, 0))
    assert not clock.is_old(statcache.Seen(0, 99 * 10**9, 100 * 10**9, 1, 1, 0))
    assert not clock.is_old(statcache.Seen(0, 99 * 10**9, 99 * 10**9, 1, 2, 0))
    assert clock.is_old(statcache.Seen(0, 10**9, 10**9, 1, 2, 0))


# --- bypassed ---


def test_all_is_read_where_the_cache_is_not_wanted(known: Known) -> None:
    store, root, read = known
    assert not store.log_artifact("x", root, stat_cache=False).is_new
    assert len(read) == 5
    with store.start_run("r") as run:
        run.log_artifact("x", root, stat_cache=False)
    begat.log_artifact("x", root, stat_cache=False)
    assert len(read) == 15


def test_verify_reads_what_is_stored(known: Known) -> None:
    store, root, _ = known
    for path in objects_of(store):
        path.chmod(0o644)
        path.write_bytes(bytes(path.stat().st_size))
    store.log_artifact("x", root)
    assert not store.verify().is_sound


# --- lost, damaged, unwritable ---


@pytest.mark.parametrize("place", ["a file", "missing", "read-only"])
def test_without_a_cache_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusting: None, read: list[str], place: str
) -> None:
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv(
        "BEGAT_CACHE", "/proc/none" if place == "missing" else str(tmp_path / "a file/below")
    )
    if place == "read-only":
        monkeypatch.setenv("BEGAT_CACHE", "/sys")
    root = make(FILES, tmp_path / "d")
    with begat.open_store() as store:
        for _ in range(2):
            assert store.log_artifact("x", root).number == 1
    assert len(read) == 10


def test_what_stands_in_the_place_of_a_file_of_rows_is_left_alone(known: Known) -> None:
    store, root, read = known
    path = kept_file()
    path.unlink()
    path.mkdir()
    (path / "mine").write_bytes(b"")
    assert store.log_artifact("x", root).number == 1
    assert len(read) == 5
    assert (path / "mine").exists()
    (path / "mine").unlink()
    path.rmdir()
    os.mkfifo(path)
    assert store.log_artifact("x", root).number == 1


def test_a_file_of_rows_of_another_user_is_not_believed(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root, read = known
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    store.log_artifact("x", root)
    assert len(read) == 5


def test_another_version_of_the_format_is_not_believed(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root, read = known
    monkeypatch.setattr(statcache, "VERSION", 2)
    store.log_artifact("x", root)
    assert len(read) == 5


def test_a_file_of_rows_is_believed_in_its_own_place_only(known: Known, tmp_path: Path) -> None:
    store, _, read = known
    data = kept_file().read_bytes()
    other = make({**FILES, "a": File(10, 4)}, tmp_path / "other")
    store.log_artifact("y", other)
    for rows in statcache.kept_rows(cache_directory()):
        rows.path.write_bytes(data)
    read.clear()
    assert same(store.log_artifact("y", other), other)
    assert len(read) == 5


def column(root: Path, cache: StatCache) -> tuple[list[Block], statcache.Recalled]:
    listed = list(walk.blocks(root, left_out=print))
    return listed, cache.recall(str(root), "", listed)


@pytest.fixture(scope="module")
def sample(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, StatCache, Path, bytes]]:
    """A folder of 150 files in blocks of 64, and the file of its rows."""
    place = tmp_path_factory.mktemp("sample")
    root = place / "d"
    root.mkdir()
    (root / "0").write_bytes(b"")
    for number in range(1, 150):
        os.link(root / "0", root / str(number))
    cache = StatCache(place, "uid", probes=(place,))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(walk, "BLOCK_ENTRIES", 64)
        listed = list(walk.blocks(root, left_out=print))
        for block in listed:
            block.digests = DIGESTS[: 32 * len(block)]
        clock = Clock(os.stat(root).st_dev, time.time_ns() + 10**12)
        cache.keep(str(root), "", listed, clock=clock, content=CONTENT, problem="none")
        [rows] = statcache.kept_rows(place)
        yield root, cache, rows.path, rows.path.read_bytes()


def test_rows_come_back_as_they_were(sample: tuple[Path, StatCache, Path, bytes]) -> None:
    root, cache, path, data = sample
    path.write_bytes(data)
    listed, whole = column(root, cache)
    assert [len(block) for block in listed] == [64, 64, 22]
    assert (whole.content, whole.problem) == (CONTENT, "none")
    for block in listed:
        assert block.digests == DIGESTS[: 32 * len(block)]


@settings(max_examples=300)
@given(st.data())
def test_arbitrary_bytes_never_raise_and_never_give_a_wrong_digest(
    sample: tuple[Path, StatCache, Path, bytes], data: st.DataObject
) -> None:
    root, cache, path, good = sample
    kind = data.draw(st.sampled_from(["bytes", "flip", "cut", "longer", "swap"]))
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        at = len(good) - 1 - at % 300  # the trailer is a small part of it
    bad = bytearray(good)
    if kind == "bytes":
        bad = bytearray(data.draw(st.binary(max_size=300)))
    elif kind == "flip":
        bad[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        bad = bad[:at]
    elif kind == "longer":
        bad += data.draw(st.binary(min_size=1, max_size=100))
    else:
        bad[at : at + 40] = bad[at : at + 40][::-1]
    path.write_bytes(bad)
    listed, whole = column(root, cache)
    assert whole.content is None or bad == good
    for block in listed:
        right = Block("", block.seen, {}, DIGESTS[: 32 * len(block)])
        known = zip(block.raw_digests(), right.raw_digests(), strict=True)
        assert all(found in (UNKNOWN, expected) for found, expected in known)


def test_a_damaged_file_of_rows_is_written_anew(known: Known) -> None:
    store, root, read = known
    path = kept_file()
    path.write_bytes(path.read_bytes()[:-1])
    store.log_artifact("x", root)
    assert len(read) == 5
    store.log_artifact("x", root)
    assert len(read) == 5


# --- many at once, and for long ---


def test_two_writers_and_a_reader_never_see_half_of_a_file(
    sample: tuple[Path, StatCache, Path, bytes],
) -> None:
    root, cache, path, data = sample
    path.write_bytes(data)
    problems: list[object] = []
    done = threading.Event()

    def write() -> None:
        listed = column(root, cache)[0]
        clock = Clock(os.stat(root).st_dev, time.time_ns() + 10**12)
        for _ in range(20):
            cache.keep(str(root), "", listed, clock=clock, content=CONTENT, problem="")
        done.set()

    def look() -> None:
        while not done.is_set():
            listed, whole = column(root, cache)
            if whole.content is None or any(UNKNOWN in b.raw_digests() for b in listed):
                problems.append(whole)

    threads = [threading.Thread(target=act) for act in (write, write, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_changes_of_a_large_folder_are_found_wherever_blocks_are_cut(
    sample: tuple[Path, StatCache, Path, bytes],
) -> None:
    root, cache, path, data = sample
    path.write_bytes(data)
    for name in ("00", "3", "99999"):
        (root / f"{name}-new").write_bytes(b"new")
    try:
        listed, whole = column(root, cache)
        assert whole.content is None
        paths = [path for block in listed for path in block.paths.split("\n")]
        known = [raw != UNKNOWN for block in listed for raw in block.raw_digests()]
        assert {p for p, k in zip(paths, known, strict=True) if not k} == {
            "00-new",
            "3-new",
            "99999-new",
        }
    finally:
        for name in ("00", "3", "99999"):
            (root / f"{name}-new").unlink()


def test_only_so_many_folders_are_kept(
    store: begat.Store, tmp_path: Path, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statcache, "MOST_FILES", 3)
    monkeypatch.setattr(statcache, "PRUNED_EVERY", 2)
    for number in range(9):
        store.log_artifact("x", make({"a": File(number, 0)}, tmp_path / str(number)))
        rows = statcache.kept_rows(cache_directory())
        os.utime(rows[0].path, (number, number))
        assert len(rows) <= 3 + number % 2
    assert len(statcache.kept_rows(cache_directory())) == 3
    monkeypatch.setattr(statcache, "MOST_BYTES", 10)
    assert statcache.prune(cache_directory()) == 3


def test_rows_of_folders_that_are_gone_are_removed(known: Known, tmp_path: Path) -> None:
    store, root, _ = known
    store.log_artifact("y", make({"a": File(1, 0)}, tmp_path / "other"))
    (tmp_path / "other/a").unlink()
    (tmp_path / "other").rmdir()
    leftover = cache_directory() / "stat/0123.tmp"
    leftover.write_bytes(b"")
    assert statcache.prune(cache_directory()) == 1
    os.utime(leftover, (0, 0))
    assert statcache.prune(cache_directory()) == 1
    assert kept_file().exists()
    assert root.exists()


# --- any changes, in any order ---

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "rename", "chmod", "link", "log", "log"]),
        st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f", "d-", "d!"]),
        st.sampled_from(["a", "c", "d/c", "d/e/g", "d,", "g/h"]),
        st.integers(0, 3),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=40)
@given(STEPS)
def test_a_version_is_what_is_there_whatever_was_done_before(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str, int]]
) -> None:
    with (
        memory_folder(tmp_path_factory.getbasetemp()) as place,
        pytest.MonkeyPatch.context() as patched,
    ):
        root = place / "d"
        root.mkdir()
        patched.setattr(statcache, "YOUNG_NS", -(10**10))
        patched.setenv("BEGAT_CACHE", str(place / "cache"))
        with begat.open_store(place / "s") as store, begat.open_store(place / "t") as other:
            for step, name, to, number in [*steps, ("log", "", "", 0)]:
                _act(root, step, name, to, number)
                if step == "log" and seen(root):
                    version = store.log_artifact("x", root)
                    assert version.digest == other.log_artifact("x", root, stat_cache=False).digest
                    assert same(version, root)
                    time.sleep(0.011)  # longer than any kernel's tick


def _act(root: Path, step: str, name: str, to: str, number: int) -> None:
    place = root / name
    if step == "log":
        return
    try:
        if step == "write":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes([number]) * 5)
        elif step == "link":
            place.symlink_to(Path(to).name)
        elif step == "remove":
            place.unlink()
        elif step == "chmod":
            place.chmod(0o755 if number % 2 else 0o644)
        else:
            (root / to).parent.mkdir(parents=True, exist_ok=True)
            place.rename(root / to)
    except OSError:
        pass  # there is no such file now, or something is in the way
