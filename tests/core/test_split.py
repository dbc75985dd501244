"""Where files are cut: always the whole file, never a failure, and cuts that stay where they are."""

import io
import json
import random
import struct
import tracemalloc
import zipfile
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from begat import split as module
from begat.split import CUT_BYTES, MAX_PART_BYTES, PIECE_BYTES, SMALL_BYTES, splits_by_content

MIB = 1 << 20
BY_CONTENT = "fastcdc2020/64K/nc1"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def safetensors(tensors: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, data in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


class Split(NamedTuple):
    splitter: str
    lengths: list[int]


def split(data: bytes | bytearray, name: str) -> Split:
    """How a file is cut; what is read of it lies inside it, and windows are the file, each some whole parts."""

    def read_at(at: int, length: int) -> memoryview:
        assert 0 <= at <= at + length <= len(data)
        return memoryview(data)[at : at + length]

    layout = module.layout_of(read_at, len(data), name)
    lengths: list[int] = []
    at = 0
    for window in module.cut(layout, read_at):
        assert window.data == data[at : at + len(window.data)]
        assert sum(window.lengths) == len(window.data) > 0
        at += len(window.data)
        lengths += window.lengths
    return Split(layout.splitter, lengths)


def parts_of(data: bytes, name: str) -> list[bytes]:
    cut = split(data, name)
    assert_sound(cut, len(data))
    ends = [sum(cut.lengths[: i + 1]) for i in range(len(cut.lengths))]
    return [data[end - length : end] for end, length in zip(ends, cut.lengths, strict=True)]


def assert_sound(cut: Split, size: int) -> None:
    assert sum(cut.lengths) == size
    assert all(1 <= length <= MAX_PART_BYTES for length in cut.lengths)


def shared(one: list[bytes], other: list[bytes]) -> int:
    return sum(map(len, set(one) & set(other)))


# --- safetensors ---


def test_tensors_are_parts_and_small_ones_are_merged_with_each_other():
    big = noise(300_000)
    data = safetensors({"a": b"x" * 10, "b": b"y" * 20, "w": big, "z": b"z" * 30})

    assert split(data, "m.SafeTensors").splitter == "safetensors/1M"
    header, weights, rest = parts_of(data, "m.safetensors")
    assert weights == big
    assert header.endswith(b"x" * 10 + b"y" * 20)
    assert rest == b"z" * 30


def test_a_changed_tensor_or_header_leaves_the_other_tensors_alone():
    tensors = {f"layer{i}": noise(500_000, i) for i in range(10)}
    before = parts_of(safetensors(tensors), "m.safetensors")
    after = parts_of(
        safetensors(tensors | {"layer3": noise(500_000, 99)}, {"step": "2"}), "m.safetensors"
    )

    assert shared(before, after) == 9 * 500_000


def test_growth_at_the_end_of_a_tensor_leaves_its_beginning_alone():
    table = noise(3 * PIECE_BYTES)
    before = parts_of(safetensors({"embed": table, "head": noise(100_000, 1)}), "m.safetensors")
    after = parts_of(
        safetensors({"embed": table + noise(4096, 2), "head": noise(100_000, 1)}), "m.safetensors"
    )

    assert shared(before, after) == 2 * PIECE_BYTES + 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little") + b"x" * 100,
        (50).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"{}more",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        safetensors({"a": b"x" * 100})[:-1],
        safetensors({"a": b"x" * 100}) + b"more",
        len(text := b'{"a":{"data_offsets":[0,9]},"b":{"data_offsets":[5,10]}}').to_bytes(
            8, "little"
        )
        + text
        + b"x" * 10,
        len(text := b'{"a":{"data_offsets":[10,0]}}').to_bytes(8, "little") + text + b"x" * 10,
        len(text := b'{"a":{"data_offsets":[-5,10]}}').to_bytes(8, "little") + text + b"x" * 10,
        len(text := b'{"a":' * 5000).to_bytes(8, "little") + text,
        len(text := b'{"a":{"data_offsets":[0,' + b"9" * 5000 + b"]}}").to_bytes(8, "little")
        + text,
    ],
    ids=range(14),
)
def test_a_file_that_is_no_safetensors_file_is_cut_all_the_same(data):
    cut = split(data, "m.safetensors")

    assert cut.splitter == BY_CONTENT
    assert_sound(cut, len(data))


def test_a_header_too_large_to_decode_is_not_decoded(monkeypatch):
    monkeypatch.setattr(module, "_MAX_HEADER_BYTES", 10)

    assert split(safetensors({"a": b"x" * 100}), "m.safetensors").splitter == BY_CONTENT


# --- zip ---


@pytest.mark.parametrize("suffix", ["pt", "npz", "keras", "zip", "bin", "PT"])
def test_members_of_a_zip_file_are_parts_whatever_it_is_called(suffix):
    members = {f"data/{i}": noise(200_000, i) for i in range(5)}
    data = zipped(members)

    assert split(data, f"m.{suffix}").splitter == "zip/1M"
    assert set(members.values()) <= set(parts_of(data, f"m.{suffix}"))


def test_a_changed_member_of_other_length_leaves_the_others_alone():
    members = {f"data/{i}": noise(200_000, i) for i in range(10)}
    before = parts_of(zipped(members), "m.pt")
    after = parts_of(zipped(members | {"data/0": noise(123_456, 99)}), "m.pt")

    assert shared(before, after) >= 9 * 200_000


def test_many_small_members_are_put_together_so_that_one_more_or_less_moves_few_cuts():
    members = {f"{i:04}": noise(1000, i) for i in range(3000)}
    before = parts_of(zipped(members), "m.npz")
    del members["0500"]
    after = parts_of(zipped(members | {"0700": noise(2000, 7)}), "m.npz")

    assert len(before) < 100
    # The two members, and the directory at the end with the places of all that moved.
    assert shared(before, after) > 2_500_000


def test_small_members_between_large_ones_stay_with_each_other():
    small = {f"s{i}": noise(1000, i) for i in range(10)}
    large = noise(200_000)
    [head, body, rest] = parts_of(zipped({"a": b"a", "large": large, **small}), "m.zip")

    assert body == large
    assert len(head) < 1000
    assert len(rest) > 10_000


def test_what_torch_saves_is_cut_at_its_storages(tmp_path):
    torch = pytest.importorskip("torch")
    weights = torch.arange(100_000, dtype=torch.float32)
    torch.save({"w": weights, "step": 1}, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()

    assert weights.numpy().tobytes() in parts_of(data, "m.pt")


def zip64() -> bytes:
    """A zip file that uses the 64-bit forms throughout, as one of more than 4 GiB does."""
    name, data = b"w", noise(100_000)
    crc = zlib.crc32(data)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, 1, 20)
    local += name + struct.pack("<2H2Q", 1, 16, len(data), len(data))
    start = len(local) + len(data)
    wide = struct.pack("<2HL", 9, 4, 0) + struct.pack("<2H3Q", 1, 24, len(data), len(data), 0)
    member = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, 1, len(wide), 0, 0, 0, 0, 0xFFFFFFFF
    )  # fmt: skip
    member += name + wide
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(member), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(member), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + data + member + end64 + locator + end


def test_the_64_bit_form_of_zip_is_read():
    data = zip64()
    assert zipfile.ZipFile(io.BytesIO(data)).read("w") == noise(100_000)

    assert split(data, "m.pt").splitter == "zip/1M"
    assert noise(100_000) in parts_of(data, "m.pt")


def test_compressed_members_and_comments_do_no_harm():
    data = bytearray(zipped({"a": b"text " * 100_000, "b": noise(100_000)}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        assert archive.testzip() is None

    assert split(data, "m.zip").splitter == "zip/1M"
    assert_sound(split(data, "m.zip"), len(data))


def _put(data: bytes, magic: bytes, at: int, value: int, length: int) -> bytes:
    changed = bytearray(data)
    begin = data.rfind(magic) + at
    changed[begin : begin + length] = value.to_bytes(length, "little")
    return bytes(changed)


TWO = zipped({"a": noise(100_000), "b": noise(100_000, 1)})


@pytest.mark.parametrize(
    "data",
    [
        _put(TWO, b"PK\1\2", 20, 2**31, 4),  # a member that would end beyond the file
        _put(TWO, b"PK\1\2", 42, 2**31, 4),  # one that would begin there
        _put(TWO, b"PK\5\6", 16, 2**31, 4),  # the directory itself
        _put(TWO, b"PK\5\6", 10, 0xFFFE, 2),  # more members than there are
        _put(TWO, b"PK\5\6", 10, 0xFFFF, 2),  # a 64-bit directory that is not there
        _put(zip64(), b"PK\6\6", 32, 2**63, 8),  # 2^63 members
        _put(zip64(), b"PK\6\6", 48, 2**63, 8),  # a directory at 2^63
        _put(zip64(), b"PK\6\7", 8, 2**63, 8),  # the 64-bit directory's end at 2^63
    ],
    ids=range(8),
)
def test_a_directory_that_does_not_fit_its_file_is_not_believed(data):
    tracemalloc.start()
    cut = split(data, "m.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert not cut.splitter.startswith("zip")
    assert_sound(cut, len(data))
    assert peak < 2 * MIB  # nothing is made by what a file claims


def test_a_header_that_claims_4_gib_is_not_believed():
    tracemalloc.start()
    data = (4 << 30).to_bytes(8, "little") + b'{"a":' + noise(100_000)
    cut = split(data, "m.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert not cut.splitter.startswith("safetensors")
    assert_sound(cut, len(data))
    assert peak < 2 * MIB


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_cut_as_they_lie_stored_or_deflated(compression):
    members = {f"{i}.npy": noise(200_000, i) for i in range(5)}
    before = parts_of(zipped(members, compression), "m.npz")
    after = parts_of(zipped(members | {"0.npy": noise(150_000, 9)}, compression), "m.npz")

    assert shared(before, after) >= 4 * 200_000 * 0.99


def test_members_that_overlap_are_not_believed():
    data = bytearray(zipped({"a": noise(100_000), "b": noise(100_000, 1)}))
    second = data.rfind(b"PK\1\2")
    data[second + 42 : second + 46] = (0).to_bytes(4, "little")

    assert split(data, "m.zip").splitter == BY_CONTENT


ZIP = zipped({"a": noise(300), "b": b"", "c": b"text" * 40}) + b""
TENSORS = safetensors({"a": noise(300), "b": b"", "c": b"text" * 40})


@given(st.sampled_from([ZIP, TENSORS, zip64()]), st.data())
def test_no_damage_to_a_file_makes_it_impossible_to_cut(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Most of what is interpreted stands at the two ends.
        at = draw.draw(st.integers(-400, 400)) % len(damaged)
        damaged[at] = draw.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    damaged = (
        damaged[: draw.draw(st.integers(0, len(damaged)))] if draw.draw(st.booleans()) else damaged
    )

    for name in ("m.zip", "m.safetensors"):
        assert_sound(split(damaged, name), len(damaged))


@given(st.binary(max_size=300), st.sampled_from(["x.pt", "x.safetensors", "x.bin"]))
def test_no_content_makes_it_impossible_to_cut(data, name):
    for hostile in (data, data + b"PK\5\6" + data[:40], len(data).to_bytes(8, "little") + data):
        assert_sound(split(hostile, name), len(hostile))


# --- others ---


@pytest.mark.parametrize(
    "size",
    [0, 1, CUT_BYTES - 1, CUT_BYTES, CUT_BYTES + 1, CUT_BYTES + SMALL_BYTES, 3 * CUT_BYTES + 5],
)
def test_what_is_compressed_as_a_whole_is_cut_every_4_mib_without_a_tiny_rest(size):
    cut = split(bytes(size), "a.JPG")

    assert cut.splitter == "fixed/4M"
    assert_sound(cut, size)
    assert len(cut.lengths) < 2 or min(cut.lengths) >= SMALL_BYTES


@pytest.mark.parametrize("size", [0, 1, 1000, SMALL_BYTES, MIB, 20 * MIB])
def test_all_the_same_bytes_are_cut_too(size):
    assert_sound(split(bytes(size), "a.bin"), size)


def test_large_files_are_cut_by_content_so_that_an_insertion_moves_few_cuts():
    assert splits_by_content()
    data = noise(20 * MIB)
    before = parts_of(data, "table.parquet")
    after = parts_of(data[: 5 * MIB] + b"inserted" + data[5 * MIB :], "table.parquet")

    assert split(data, "table.parquet").splitter == BY_CONTENT
    assert shared(before, after) > 19 * MIB


def test_without_the_compiled_part_files_are_cut_every_4_mib(monkeypatch):
    monkeypatch.setattr(module, "splits_by_content", lambda: False)

    assert split(bytes(17 * MIB), "a.bin").splitter == "fixed/4M"
    members = zipped({f"{i}": noise(1000, i) for i in range(5000)})
    assert max(map(len, parts_of(members, "a.zip"))) == CUT_BYTES


def test_of_huge_files_the_parts_are_larger(monkeypatch):
    monkeypatch.setattr(module, "_HUGE_BYTES", 20 * MIB)

    cut = split(noise(20 * MIB), "a.bin")
    assert cut.splitter == "fastcdc2020/1M/nc1"
    assert len(cut.lengths) < 40
    assert_sound(cut, 20 * MIB)


def _in_turn(data: bytes) -> list[int]:
    from pyfastcdc import FastCDC

    cutter = FastCDC(65536, min_size=16384, max_size=MAX_PART_BYTES, normalized_chunking=1, seed=0)
    return [chunk.length for chunk in cutter.cut_buf(data)]


@pytest.mark.parametrize(
    "data",
    [
        noise(40 * MIB + 12_345),
        bytes(33 * MIB),  # parts of the largest size only
        noise(100_000, 5) * 400,  # never the same cuts from two beginnings
        noise(17 * MIB) + bytes(9 * MIB) + noise(3 * MIB, 1),
    ],
    ids=["noise", "zeros", "repeats", "both"],
)
@pytest.mark.parametrize("window_bytes", [1, MIB, 9 * MIB])
def test_windows_of_any_size_have_the_cuts_of_the_whole(data, window_bytes, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", window_bytes)

    cut = split(data, "a.bin")
    assert cut.lengths == _in_turn(data)
