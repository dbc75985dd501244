"""Packs, recipes and compression: what is written is read back, anything else is refused."""

import os
import random
import threading
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from begat import packs
from begat.config import Compression
from begat.errors import Corrupt, DigestMismatch, FormatTooNew, LimitExceeded, ManifestUnreadable
from begat.model import BlobLocation, Digest
from begat.packs import Part, Recipe

NAME = "ab/" + "ab" * 32 + "-12345678"


def digest_of(data: bytes) -> Digest:
    return Digest(f"b3:{blake3(data).hexdigest()}")


def pack_of(*blobs: bytes) -> tuple[bytes, list[BlobLocation]]:
    places: list[BlobLocation] = []
    data = b""
    for blob in blobs:
        stored, codec = packs.compress(blob)
        places.append(
            BlobLocation(digest_of(blob), NAME, len(data), len(stored), len(blob), codec, "file")
        )
        data += stored
    return data + packs.encode_index(places), places


def with_index(rows: list, stored: bytes = b"", magic: bytes = b"begatpk1") -> bytes:
    """A pack with any index at all, under a footer that fits it."""
    index = rows if isinstance(rows, bytes) else msgspec.msgpack.encode(rows)
    return stored + index + len(index).to_bytes(8, "little") + blake3(index).digest() + magic


def read(pack: bytes) -> list[BlobLocation]:
    return packs.read_index(
        NAME, lambda offset, length: pack[offset : offset + length], size_bytes=len(pack)
    )


# --- packs ---


def test_a_pack_tells_where_its_blobs_lie():
    blobs = [b"", b"a", b"text " * 1000, os.urandom(70_000)]
    pack, places = pack_of(*blobs)

    found = read(pack)

    assert found == places
    for place, blob in zip(found, blobs, strict=True):
        stored = pack[place.offset : place.offset + place.stored_length]
        assert packs.decompress(stored, place.codec, raw_length=place.raw_length) == blob


def test_a_pack_of_no_blobs_is_a_pack():
    assert read(packs.encode_index([])) == []


def test_the_bytes_of_a_pack_never_change():
    place = BlobLocation(digest_of(b"a"), "", 0, 1, 1, "none", "file")
    # 1 row of 6; a digest of 67 characters; "file", 0, 1, 1, "none"; then the footer.
    tail = packs.encode_index([place])
    digest_text = digest_of(b"a").encode()
    expected = b"\x91\x96\xd9\x43" + digest_text + b"\xa4file\x00\x01\x01\xa4none"
    assert tail[: len(expected)] == expected
    assert tail[len(expected) :] == (
        len(expected).to_bytes(8, "little") + blake3(expected).digest() + b"begatpk1"
    )


@given(st.data())
def test_no_flipped_bit_behind_the_blobs_goes_unnoticed(data):
    pack, places = pack_of(b"one", b"two" * 100)
    start = places[-1].offset + places[-1].stored_length
    at = data.draw(st.integers(start, len(pack) - 1))
    mask = data.draw(st.integers(1, 255))

    with pytest.raises((Corrupt, FormatTooNew)):
        read(pack[:at] + bytes([pack[at] ^ mask]) + pack[at + 1 :])


@given(st.data())
def test_a_truncated_pack_is_damaged(data):
    pack, _ = pack_of(b"one", b"two" * 100)

    with pytest.raises(DigestMismatch):
        read(pack[: data.draw(st.integers(0, len(pack) - 1))])


@given(st.binary(max_size=120))
def test_no_index_makes_a_reader_fail_in_another_way(index):
    try:
        read(with_index(index))
    except (DigestMismatch, FormatTooNew):
        pass


ROW = [digest_of(b"abc"), "file", 0, 3, 3, "none"]


def test_a_row_that_fits_its_bytes_is_read():
    assert len(read(with_index([ROW], b"abc"))) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [[*ROW[:2], 1, 3, 3, "none"]],
        [[*ROW[:2], 0, 4, 4, "none"]],
        [[*ROW[:2], 0, 2, 2, "none"]],
        [[*ROW[:3], 3, 4, "none"]],
        [ROW, ROW],
        [],
        [["b3:abc", *ROW[1:]]],
        [[*ROW[:2], -1, 3, 3, "none"]],
        [[*ROW[:2], 0.0, 3, 3, "none"]],
        [[*ROW[:2], 2**63, 3, 3, "none"]],
        {"blobs": 1},
        b"\xdd\x00\x00\x00\x01" + msgspec.msgpack.encode([ROW])[1:],
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
    ids=repr,
)
def test_an_index_that_does_not_tile_the_pack_is_damage(rows):
    with pytest.raises(DigestMismatch):
        read(with_index(rows, b"abc"))


@pytest.mark.parametrize(
    ("rows", "magic"),
    [
        ([[ROW[0], "tensor", *ROW[2:]]], b"begatpk1"),
        ([[*ROW[:5], "lz4"]], b"begatpk1"),
        ([[*ROW, "more"]], b"begatpk1"),
        ([ROW], b"begatpk2"),
    ],
    ids=["kind", "codec", "longer row", "magic"],
)
def test_a_kind_codec_length_or_magic_that_is_not_known_is_a_newer_format(rows, magic):
    with pytest.raises(FormatTooNew):
        read(with_index(rows, b"abc", magic))


def test_an_index_that_claims_to_be_huge_is_not_read():
    asked: list[int] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append(length)
        return (2**40).to_bytes(8, "little") + bytes(32) + b"begatpk1"

    with pytest.raises(DigestMismatch):
        packs.read_index(NAME, read_at, size_bytes=2**41)
    assert asked == [packs.FOOTER_BYTES]


def test_a_pack_of_too_many_blobs_is_not_written():
    place = BlobLocation(digest_of(b""), "", 0, 0, 0, "none", "file")

    with pytest.raises(LimitExceeded):
        packs.encode_index([place] * (packs.MAX_BLOBS + 1))


def test_a_full_index_stays_below_its_limit():
    place = BlobLocation(digest_of(b""), "", 0, 0, 0, "none", "recipe")

    assert len(read(packs.encode_index([place] * packs.MAX_BLOBS))) == packs.MAX_BLOBS


# --- recipes ---

PARTS = (Part(digest_of(b"a"), 5), Part(digest_of(b"b"), packs.MAX_PART_BYTES))
RECIPE = Recipe(digest_of(b"file"), 5 + packs.MAX_PART_BYTES, "fastcdc2020/128K/nc1", PARTS)


def test_a_recipe_survives_its_bytes():
    assert packs.decode_recipe(packs.encode_recipe(RECIPE)) == RECIPE


def test_the_bytes_of_a_recipe_never_change():
    recipe = Recipe(digest_of(b"file"), 300, "fixed/4M", (Part(digest_of(b"a"), 300),))

    expected = b"\x95\x01\xd9\x43" + recipe.file.encode() + b"\xcd\x01\x2c\xa8fixed/4M"
    expected += b"\x91\x92\xd9\x43" + digest_of(b"a").encode() + b"\xcd\x01\x2c"
    assert packs.encode_recipe(recipe) == expected


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(RECIPE.file, 6, "fixed/4M", PARTS[:1]),
        Recipe(RECIPE.file, 0, "fixed/4M", (Part(PARTS[0].digest, 0),)),
        Recipe(RECIPE.file, 2**23 + 1, "fixed/4M", (Part(PARTS[0].digest, 2**23 + 1),)),
        Recipe(Digest("b3:x"), 5, "fixed/4M", PARTS[:1]),
        Recipe(RECIPE.file, 5, "fixed 4M", PARTS[:1]),
        Recipe(RECIPE.file, 5, "fixed/4M", (Part(Digest("b3:x"), 5),)),
    ],
    ids=["sum", "empty part", "large part", "digest", "splitter", "part digest"],
)
def test_a_recipe_that_does_not_fit_its_file_is_neither_written_nor_read(recipe):
    with pytest.raises(LimitExceeded):
        packs.encode_recipe(recipe)
    row = [1, recipe.file, recipe.size_bytes, recipe.splitter, recipe.parts]
    with pytest.raises(ManifestUnreadable):
        packs.decode_recipe(msgspec.msgpack.encode(row))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: [2, *row[1:]],
        lambda row: [*row, "more"],
        lambda row: [*row[:4], [[*part, "more"] for part in row[4]]],
    ],
    ids=["version", "longer", "longer part"],
)
def test_a_recipe_that_is_not_known_is_a_newer_format(change):
    row = msgspec.msgpack.decode(packs.encode_recipe(RECIPE))

    with pytest.raises(FormatTooNew):
        packs.decode_recipe(msgspec.msgpack.encode(change(row)))


@given(st.binary(max_size=120) | st.integers(0, 250))
def test_damaged_recipes_are_unreadable(damage):
    data = packs.encode_recipe(RECIPE)
    if isinstance(damage, int):
        at = damage % len(data)
        damage = data[:at] + data[at + 1 :]
    try:
        assert packs.decode_recipe(damage) == RECIPE
    except (ManifestUnreadable, FormatTooNew):
        pass


def test_non_canonical_forms_of_a_recipe_are_unreadable():
    data = packs.encode_recipe(RECIPE)

    for other in (data + b"\xc0", b"\xdc\x00\x05" + data[1:], b"\x95\xcc\x01" + data[2:]):
        with pytest.raises(ManifestUnreadable):
            packs.decode_recipe(other)


# --- compression ---


@given(st.binary(max_size=5000), st.integers(1, 100))
def test_what_was_compressed_comes_out_again(piece, times):
    raw = piece * times
    stored, codec = packs.compress(raw)

    assert len(stored) <= len(raw)
    assert packs.decompress(stored, codec, raw_length=len(raw)) == raw


def test_text_is_compressed_and_noise_is_not():
    assert packs.compress(b"some text, again and again; " * 10_000)[1] == "zstd"
    noise = os.urandom(500_000)
    assert packs.compress(noise) == (noise, "none")


def test_the_first_64_kib_decide():
    raw = os.urandom(64 * 1024) + bytes(1_000_000)

    assert packs.compress(raw)[1] == "none"


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(50_000_000))
    assert len(bomb) < 10_000

    with pytest.raises(DigestMismatch):
        packs.decompress(bomb, "zstd", raw_length=100)


def test_a_large_file_is_halved_by_compression_if_its_two_ends_and_its_middle_are():
    text, noise = b"some text, again and again; " * 20_000, os.urandom(560_000)

    def found(raw: bytes) -> bool:
        return packs.would_shrink(lambda at, length: raw[at : at + length], len(raw), to=0.5)

    assert found(text)
    assert found(text[:100])
    assert not found(noise)
    assert not found(text[:100_000] + noise)
    assert found(text + noise[:70_000])
    assert not found(b"")


def test_a_length_beyond_what_is_ever_compressed_is_refused():
    with pytest.raises(DigestMismatch):
        packs.decompress(b"", "zstd", raw_length=2**40)


def streamed(raw: bytes) -> bytes:
    """A frame that does not tell its length; we never write one."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(raw)


@pytest.mark.parametrize(
    ("stored", "codec"),
    [
        (b"", "zstd"),
        (b"not zstd at all, but long enough to be", "zstd"),
        (streamed(b"x" * 1000), "zstd"),
        (zstandard.ZstdCompressor().compress(b"x" * 1000) + b"more", "zstd"),
        (zstandard.ZstdCompressor().compress(b"x" * 1000)[:-3], "zstd"),
        (zstandard.ZstdCompressor().compress(b"x" * 999), "zstd"),
        (b"x" * 999, "none"),
    ],
    ids=["empty", "noise", "no length", "more", "less", "shorter", "plain"],
)
def test_what_cannot_be_decoded_is_never_handed_out(stored, codec):
    with pytest.raises(DigestMismatch):
        packs.decompress(stored, codec, raw_length=1000)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_flipped_bits_end_in_one_error_or_in_the_right_length(position, mask):
    stored, _ = packs.compress(b"abcdefgh" * 500)
    at = position % len(stored)
    try:
        raw = packs.decompress(
            stored[:at] + bytes([stored[at] ^ mask]) + stored[at + 1 :], "zstd", raw_length=4000
        )
    except DigestMismatch:
        return
    assert len(raw) == 4000


def test_threads_do_not_disturb_each_other():
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(200):
            raw = f"{seed}-{i} ".encode() * 500
            stored, codec = packs.compress(raw)
            if packs.decompress(stored, codec, raw_length=len(raw)) != raw:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# --- which blobs of a batch are compressed ---


def tried(monkeypatch: pytest.MonkeyPatch, how: Compression, blobs: list[tuple[bytes, str]]) -> int:
    """How many blobs of a batch zstd is asked about."""
    count = 0
    compress = packs.compress

    def counted(raw: bytes, **options: Any) -> tuple[bytes, str]:
        nonlocal count
        count += 1
        return compress(raw, **options)

    monkeypatch.setattr(packs, "compress", counted)
    compressor = packs.Compressor(how)
    for raw, ending in blobs:
        stored, codec = compressor.compress(raw, ending)
        assert packs.decompress(stored, codec, raw_length=len(raw)) == raw
    monkeypatch.undo()
    return count


NOISE = random.Random(2).randbytes(20_000)
TEXT = b"some text, again and again; " * 1000


def test_what_does_not_shrink_is_not_tried_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [(NOISE, ".jpg")] * 400
    assert tried(monkeypatch, "auto", images) < 40
    # Of each ending by itself.
    assert tried(monkeypatch, "auto", images + [(TEXT, ".txt")] * 100) < 140
    assert tried(monkeypatch, "zstd", images) == 400
    assert tried(monkeypatch, "off", images) == 0


def test_an_ending_that_shrinks_after_all_is_compressed_again_soon() -> None:
    compressor = packs.Compressor("auto")
    for _ in range(100):
        compressor.compress(NOISE, ".bin")
    codecs = [compressor.compress(TEXT, ".bin")[1] for _ in range(30)]
    assert codecs.count("zstd") >= 30 - 16
    assert codecs[16:] == ["zstd"] * 14
