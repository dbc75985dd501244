"""A manifest in the store: what is asked for is found by reading few pages, and damage elsewhere does no harm."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import begat
from begat.blobs import BlobReader
from begat.errors import BadPath, Corrupt, DigestMismatch, ManifestUnreadable
from begat.identity import Digest, digest_of
from begat.ignore import matcher
from begat.manifest import Manifest, PageRef, encode_root, pages
from begat.model import Entry, StoredFile
from begat.objects import ObjectStore
from begat.pages import StoredManifest, read_manifest
from trees import MIB, File

COUNT = 24_000


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture
def large(store: begat.Store) -> begat.Version:
    """A version with many pages, and few bytes: d0/, d1/, ... d59/ with 400 files each."""
    draft = begat.Artifact("x")
    for number in range(COUNT):
        draft.add(
            b"%d" % (number % 7),
            f"d{number % 60}/{number}",
            metadata={"n": 1} if number == 9 else None,
        )
    return store.log_artifact(draft)


class Reads:
    """Which pages of a version are read, as numbers."""

    def __init__(
        self, version: begat.Version, store: begat.Store, patch: pytest.MonkeyPatch
    ) -> None:
        record = store.catalog.versions.get(version.uid)
        self.manifest = read_manifest(store.reader(), record.root)
        self.refs = [ref for ref, _ in pages(self.manifest)]
        self.numbers: list[int] = []
        read, known = BlobReader.read, {ref.digest: at for at, ref in enumerate(self.refs)}

        def note(reader: BlobReader, digest: Digest) -> bytes:
            if digest in known:
                self.numbers.append(known[digest])
            return read(reader, digest)

        patch.setattr(BlobReader, "read", note)

    def take(self) -> list[int]:
        taken, self.numbers = self.numbers, []
        return taken

    def holding(self, chosen: Sequence[Entry]) -> set[int]:
        """The pages that entries are in."""
        starts = [ref.first_path for ref in self.refs]
        return {sum(start <= entry.path for start in starts) - 1 for entry in chosen}


def damage(store: begat.Store, digests: Sequence[Digest]) -> None:
    for place in store.catalog.bytes.locations(digests).values():
        path = store.path / "objects" / place.object
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(place.offset + place.stored_length // 2)
            byte = file.read(1)
            file.seek(place.offset + place.stored_length // 2)
            file.write(bytes([byte[0] ^ 1]))


def test_the_manifest_is_read_back_from_its_pages(large: begat.Version, store: begat.Store) -> None:
    manifest = read_manifest(store.reader(), store.catalog.versions.get(large.uid).root)
    assert manifest.digest == large.digest
    assert len(manifest.entries) == COUNT
    entries = store.get_artifact("x").entries
    assert [e.path for e in entries if e.metadata] == ["d9/9"]
    assert [(e.path, e.size_bytes) for e in entries] == [
        (e.path, e.size_bytes) for e in manifest.entries
    ]


def test_a_path_is_found_by_one_page(
    large: begat.Version, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(large, store, monkeypatch)
    assert len(reads.refs) > 3
    for path in ("d17/17", reads.refs[2].first_path, reads.manifest.entries[-1].path):
        version = store.get_artifact("x")
        data = b"%d" % (int(path.rpartition("/")[2]) % 7)
        assert version.read_bytes(path) == data
        with version.open(path) as file:
            assert file.read() == data
        assert len(reads.take()) == 1  # for both: the page is kept
    for missing in ("a", "d17/17x", "zzz", "d5"):
        with pytest.raises(BadPath, match="is a folder" if missing == "d5" else "is not in"):
            store.get_artifact("x").read_bytes(missing)
        assert len(reads.take()) <= 1


@pytest.mark.parametrize(
    "glob", ["d17/*", "d3/1*", "d3/**", "d3*/7?", "d3", "d3/", "d58/[0-4]*", "nothing/*"]
)
def test_a_folder_is_listed_by_its_pages(
    glob: str, large: begat.Version, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(large, store, monkeypatch)
    chosen = matcher(glob)
    expected = [entry for entry in reads.manifest.entries if chosen.is_chosen(entry.path)]
    assert [entry.path for entry in store.get_artifact("x").files(glob)] == [
        e.path for e in expected
    ]
    near = [
        e
        for e in reads.manifest.entries
        if e.path.startswith(glob.partition("*")[0].partition("[")[0])
    ]
    numbers = reads.take()
    assert set(numbers) >= reads.holding(expected)
    assert len(numbers) <= len(reads.holding(near)) + 1  # the page before may hold it as well
    assert len(numbers) < len(reads.refs)


def test_what_lies_below_a_path_is_read_by_its_pages(
    large: begat.Version, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(large, store, monkeypatch)
    version = store.get_artifact("x")
    below = version.below("d3")  # and not d30, d31, ...
    assert [e.path for e in below] == [e.path for e in version.entries if e.path.startswith("d3/")]
    assert version.below("d9/9")[0].metadata == {"n": 1}
    assert version.below("no") == ()
    reads.take()
    assert store.get_artifact("x").below("d3") == below
    assert len(reads.take()) <= len(reads.holding(below)) + 2


def test_chosen_files_are_got_by_their_pages(
    large: begat.Version, store: begat.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads = Reads(large, store, monkeypatch)
    store.get_artifact("x").download(tmp_path / "out", include=["d7/*", "d7/1*", "d41/*1"])
    found = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*/*")
    }
    chosen = matcher(["d7/*", "d41/*1"])
    assert found == {e.path for e in reads.manifest.entries if chosen.is_chosen(e.path)}
    assert 0 < len(reads.take()) < len(reads.refs)


def test_a_damaged_page_spoils_what_is_in_it_and_nothing_else(
    large: begat.Version, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(large, store, monkeypatch)
    damage(store, [ref.digest for at, ref in enumerate(reads.refs) if at != 1])
    sound = reads.refs[1].first_path
    version = store.get_artifact("x")
    assert version.read_bytes(sound) == b"%d" % (int(sound.rpartition("/")[2]) % 7)
    assert version.below(sound)[0].path == sound
    with pytest.raises(Corrupt, match=r"x:v1"):
        version.read_bytes(reads.refs[0].first_path)
    with pytest.raises(Corrupt, match=r"x:v1"):
        _ = version.entries


# --- roots and pages that no begat wrote ---


def entries_of(*paths: str) -> list[Entry]:
    return [StoredFile(path, 1, digest_of(b"1"), False) for path in paths]


def stored(groups: list[list[str]], refs: list[PageRef] | None = None) -> StoredManifest:
    """Pages as given, under a root that names them (or what `refs` says of them)."""
    made = [next(pages(Manifest.of(entries_of(*group)))) for group in groups]
    whole = Manifest.of(entries_of(*(path for group in groups for path in group)))
    root = encode_root(whole, refs or [ref for ref, _ in made])
    blobs = {ref.digest: data for ref, data in made} | {digest_of(root): root}
    reader = SimpleNamespace(read=blobs.__getitem__, prefetch=lambda _digests: None)
    return StoredManifest(lambda: cast("BlobReader", reader), digest_of(root), whole.digest)


def test_pages_that_hold_what_their_root_says_are_read() -> None:
    manifest = stored([["a", "b"], ["c", "d/e"]])
    assert manifest.find("d/e") == entries_of("d/e")[0]
    assert manifest.find("bb") is None
    assert [e.path for e in manifest.starting_with(["b", "d", "d/"])] == ["b", "d/e"]
    assert len(manifest.all().entries) == 4


def test_pages_out_of_order_are_refused() -> None:
    manifest = stored([["c", "d"], ["a", "b"]])
    with pytest.raises(ManifestUnreadable, match="out of order"):
        manifest.find("a")


def test_a_page_that_reaches_into_the_next_is_refused() -> None:
    manifest = stored([["a", "c"], ["b", "d"]])
    with pytest.raises(ManifestUnreadable, match="page 1 is not the one"):
        manifest.find("aa")


@pytest.mark.parametrize("change", [{"first_path": "aa"}, {"entry_count": 1}])
def test_a_page_that_is_not_what_its_root_says_is_refused(change: dict[str, Any]) -> None:
    groups = [["a", "b"], ["c", "d"]]
    refs = [next(pages(Manifest.of(entries_of(*group))))[0] for group in groups]
    facts = {"digest": refs[0].digest, "first_path": "a", "entry_count": 2} | change
    refs[0] = PageRef(**facts)
    if "entry_count" in change:
        refs[1] = PageRef(refs[1].digest, "c", 3)  # the sum fits
    with pytest.raises(ManifestUnreadable, match="page 1 is not the one"):
        stored(groups, refs).find("a")


def test_a_root_of_other_content_is_refused() -> None:
    manifest = stored([["a"], ["b"]])
    manifest._content = digest_of(b"other")
    with pytest.raises(Corrupt, match="another one than was committed"):
        manifest.find("a")


# --- an open file ---


class Ranges:
    """What is read of objects: (offset, length)."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        read = ObjectStore.read

        def note(objects: ObjectStore, name: str, *, offset: int, length: int) -> bytes:
            self.seen.append((offset, length))
            return read(objects, name, offset=offset, length=length)

        patch.setattr(ObjectStore, "read", note)

    def total(self) -> int:
        total = sum(length for _, length in self.seen)
        self.seen.clear()
        return total


@pytest.mark.parametrize("is_in_packs", [False, True])
def test_of_a_large_file_only_the_parts_are_read_that_are_asked_for(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch, is_in_packs: bool
) -> None:
    data = File(40 * MIB, 0).data
    version = store.log_artifact("x", data)
    if is_in_packs:
        data = data[: 20 * MIB] + b"other" + data[20 * MIB + 5 :]
        version = store.log_artifact("y", data)
    path = version.entries[0].path
    ranges = Ranges(monkeypatch)
    with version.open(path) as file:
        ranges.total()
        assert file.seek(30 * MIB) == 30 * MIB
        for at in range(30 * MIB, 30 * MIB + 5000, 1000):
            assert file.read(1000) == data[at : at + 1000]
        assert 0 < ranges.total() <= 8 * MIB
        assert file.seek(20 * MIB - 3) == 20 * MIB - 3
        assert file.read(10) == data[20 * MIB - 3 : 20 * MIB + 7]
        assert ranges.total() <= 16 * MIB
        assert file.seek(-5, io.SEEK_END) == 40 * MIB - 5
        assert (file.read(100), file.read(1)) == (data[-5:], b"")
        file.seek(0)
        assert file.read() == data


def test_a_damaged_part_spoils_what_is_in_it_and_nothing_else(store: begat.Store) -> None:
    data = File(40 * MIB, 0).data
    version = store.log_artifact("x", data)
    [name] = [
        p for p in (store.path / "objects").rglob("*") if p.is_file() and p.stat().st_size > MIB
    ]
    name.chmod(0o644)
    with name.open("r+b") as file:
        file.seek(30 * MIB)
        file.write(b"damaged")
    with version.open("x") as opened:
        opened.seek(10 * MIB)
        assert opened.read(100) == data[10 * MIB : 10 * MIB + 100]
        opened.seek(30 * MIB)
        with pytest.raises(DigestMismatch):
            opened.read(100)


def test_an_open_file_behaves_like_one(store: begat.Store) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.txt", b"one\ntwo\n" * 300_000)
    version = store.log_artifact(
        begat.Artifact("x").add(archive.getvalue(), "a.zip").add(b"l1\nl2\n", "b").add(b"", "c")
    )
    with version.open("a.zip") as file, zipfile.ZipFile(file) as read:
        assert read.read("a.txt") == b"one\ntwo\n" * 300_000
    with version.open("b") as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert list(file) == [b"l1\n", b"l2\n"]
        assert (file.tell(), file.read(3)) == (6, b"")
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with version.open("c") as file:
        assert (file.read(), file.readline()) == (b"", b"")
