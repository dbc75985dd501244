"""Bytes by digest: stored once, in packs or as they are, and read back verified."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat.blobs import SMALL_FILE_BYTES, BlobWriter, hash_fd
from begat.errors import BadInput, DigestMismatch, ObjectMissing
from begat.identity import Digest, digest_of
from begat.model import StoredFile
from trees import MIB

RANDOM = random.Random(3)
LARGE = RANDOM.randbytes(9 * MIB)


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


def writer(store: begat.Store) -> BlobWriter:
    return BlobWriter(store.objects, store.catalog.bytes)


def commit(store: begat.Store, staged) -> None:
    store.catalog.restoring.place(staged)


def objects_of(store: begat.Store) -> dict[str, int]:
    return dict(store.objects.list())


def test_small_blobs_share_a_pack_and_are_stored_once(store: begat.Store) -> None:
    blobs = [b"%d" % n for n in range(100)]
    with store.locks.writing(), writer(store) as one:
        digests = one.add([*blobs, *blobs])
        assert one.add(blobs) == digests[:100]
        [staged] = one.seal()
    assert digests[:100] == digests[100:] == [digest_of(blob) for blob in blobs]
    assert len(staged.blobs) == 100
    assert objects_of(store) == {staged.name: staged.size_bytes}
    commit(store, [staged])
    with store.locks.writing(), writer(store) as two:
        two.add(blobs)
        assert two.seal() == ()
    reader = store.reader()
    assert [reader.read(digest) for digest in digests[:100]] == blobs


def test_a_writer_that_gives_up_leaves_nothing(store: begat.Store) -> None:
    with store.locks.writing(), writer(store) as one:
        one.add([b"1"])
        assert list((store.path / "tmp").iterdir()) != []
    assert list((store.path / "tmp").iterdir()) == []
    assert objects_of(store) == {}


def test_a_large_new_file_is_an_object_of_its_own_with_parts(store: begat.Store) -> None:
    version = store.log_artifact("x", LARGE)
    verbatim = [name for name, size in objects_of(store).items() if size == len(LARGE)]
    assert len(verbatim) == 1
    assert verbatim[0][3:67] == digest_of(LARGE)[3:]
    assert (store.path / "objects" / verbatim[0]).read_bytes() == LARGE
    assert (store.path / "objects" / verbatim[0]).stat().st_mode & 0o777 == 0o444
    assert version.read_bytes("x") == LARGE
    recipe = store.reader().recipe(digest_of(LARGE))
    assert recipe is not None
    assert sum(length for _, length in recipe.parts) == len(LARGE)
    assert 50 < len(recipe.parts) < 200


def test_a_large_new_file_of_text_is_compressed(store: begat.Store) -> None:
    text = "".join(f"line {number} of a text\n" for number in range(200_000)).encode()
    version = store.log_artifact("x", text)
    assert version.new_bytes < len(text) / 2
    assert all(size < len(text) / 2 for size in objects_of(store).values())
    assert version.read_bytes("x") == text
    assert store.verify().damaged == ()
    assert store.log_artifact("y", text).new_bytes < 1000


def test_of_a_file_that_is_mostly_known_only_new_parts_are_stored(store: begat.Store) -> None:
    store.log_artifact("x", LARGE)
    grown = LARGE[: 8 * MIB] + RANDOM.randbytes(2 * MIB)
    version = store.log_artifact("x", grown)
    # One part over the place where they begin to differ, which is new too, and the recipe.
    assert 2 * MIB < version.new_bytes < 2.3 * MIB
    assert version.read_bytes("x") == grown
    assert store.get_artifact("x:v1").read_bytes("x") == LARGE


def test_files_at_the_threshold_come_back_from_memory_and_from_disk(
    store: begat.Store, tmp_path: Path
) -> None:
    for size in (SMALL_FILE_BYTES - 1, SMALL_FILE_BYTES, SMALL_FILE_BYTES + 1):
        data = RANDOM.randbytes(size)
        (tmp_path / "file").write_bytes(data)
        from_disk = store.log_artifact("x", tmp_path / "file")
        again = store.log_artifact(begat.Artifact("y").add(data, "file"))
        assert again.digest == from_disk.digest
        assert again.new_bytes < 2000
        assert from_disk.read_bytes("file") == data


def test_ranges_are_read_and_verified(store: begat.Store) -> None:
    store.log_artifact("x", LARGE)
    store.log_artifact("y", b"small one")
    reader = store.reader()
    digest = digest_of(LARGE)
    ranges = [
        (0, 10),
        (4 * MIB - 5, 10),
        (len(LARGE) - 3, 100),
        (5, 0),
        (len(LARGE), 1),
        (0, 9 * MIB),
    ]
    for offset, length in ranges:
        found = b"".join(reader.stream(digest, len(LARGE), offset=offset, length=length))
        assert found == LARGE[offset : offset + length]
    assert b"".join(reader.stream(digest_of(b"small one"), 9, offset=6)) == b"one"


def test_a_blob_that_nobody_stored_is_missing(store: begat.Store) -> None:
    with pytest.raises(ObjectMissing):
        store.reader().read(digest_of(b"never"))
    with pytest.raises(ObjectMissing):
        writer(store).require(StoredFile("a", 5, digest_of(b"never")))


def test_compressible_blobs_are_compressed_and_random_ones_are_not(store: begat.Store) -> None:
    text = store.log_artifact("text", b"the same again and again\n" * 10_000)
    assert text.new_bytes < 10_000
    assert text.read_bytes("text") == b"the same again and again\n" * 10_000
    noise = store.log_artifact("noise", RANDOM.randbytes(200_000))
    assert noise.new_bytes > 200_000


def test_how_files_are_compressed_is_chosen_and_changes_nothing_else(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One small file and one in parts, of text that zstd more than halves; noise that it does not; and a sixth of text.
    text = b"".join(b"%d again and again\n" % n for n in range(150_000))
    mixed = RANDOM.randbytes(2_500_000) + text[:500_000]
    draft = begat.Artifact("x").add(text[:50_000], "small.txt").add(text, "large.txt")
    draft.add(LARGE[: 2 * MIB], "noise.bin").add(mixed, "mixed.bin")
    stored: dict[str, int] = {}
    digests: set[str] = set()
    for how in ("off", "auto", "zstd"):
        monkeypatch.setenv("BEGAT_COMPRESSION", how)
        with begat.open_store(tmp_path / how) as one:
            version = one.log_artifact(draft)
            digests.add(version.digest)
            stored[how] = version.new_bytes
            monkeypatch.setenv("BEGAT_COMPRESSION", "zstd" if how == "off" else "off")
            assert one.log_artifact("again", text).new_bytes < 5_000  # known, however it lies
            assert version.read_bytes("large.txt") == text
            assert version.read_bytes("small.txt") == text[:50_000]
            assert version.read_bytes("mixed.bin") == mixed
            assert one.verify().is_sound
    assert len(digests) == 1
    assert stored["off"] > version.size_bytes
    assert stored["auto"] < stored["off"] - 2_000_000
    assert stored["zstd"] < stored["auto"] - 200_000
    monkeypatch.setenv("BEGAT_COMPRESSION", "lz4")
    with pytest.raises(BadInput, match=r"lz4.*auto, off, zstd"):
        store.log_artifact("y", b"1")


def test_what_the_catalog_offers_is_looked_for_before_it_is_relied_on(store: begat.Store) -> None:
    first = store.log_artifact("x", b"content")
    for path in (store.path / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    again = store.log_artifact("y", begat_content := b"content")
    assert again.new_bytes > len(begat_content)
    assert again.read_bytes("y") == b"content"
    assert store.catalog.bytes.held_objects(first.uid)  # its file was healed, its manifest was not
    assert not store.log_artifact("x", b"content").is_new
    assert store.verify().is_sound


def test_a_recipe_of_another_file_is_not_followed(store: begat.Store) -> None:
    other = RANDOM.randbytes(9 * MIB)
    store.log_artifact("x", LARGE)
    store.log_artifact("y", other)
    found = store.catalog.bytes.recipes([digest_of(other)])[digest_of(other)]
    reader = store.reader()
    reader._recipes[digest_of(LARGE)] = found
    with pytest.raises(DigestMismatch, match="recipe"):
        reader.recipe(digest_of(LARGE))
    assert (
        b"".join(reader.stream(digest_of(LARGE), len(LARGE))) == LARGE
    )  # it is here in one piece as well


def test_hashing_an_open_file_leaves_its_position_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LARGE)
    with (tmp_path / "f").open("rb") as file:
        file.seek(7)
        assert hash_fd(file.fileno()) == digest_of(LARGE)
        assert file.tell() == 7
    assert Digest(digest_of(b"")).startswith("b3:af1349b9")
