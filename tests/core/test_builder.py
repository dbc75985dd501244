"""A manifest that is written while its entries come is the one that is written from all of them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from begat import manifest
from begat.builder import Built, ManifestBuilder
from begat.errors import BadInput, BadPath, LimitExceeded
from begat.manifest import Manifest
from begat.model import Digest, EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink
from trees import paths

GOLDEN = json.loads((Path(__file__).parent / "golden" / "manifest_v1.json").read_bytes())["cases"]


def stored(path: str, size_bytes: int = 1, salt: str = "") -> StoredFile:
    return StoredFile(path, size_bytes, Digest(f"b3:{blake3((path + salt).encode()).hexdigest()}"))


def built(entries: list[Entry], step: int = 7) -> tuple[Built, list[bytes]]:
    pages: list[bytes] = []
    builder = ManifestBuilder(pages.append)
    for at in range(0, len(entries), step):
        builder.add(entries[at : at + step])
    return builder.finish(), pages


def check_same(entries: list[Entry]) -> None:
    made = Manifest.of(entries)
    found, pages = built(sorted(entries, key=lambda entry: entry.path))
    refs = [ref for ref, _ in manifest.pages(made)]
    assert pages == [data for _, data in manifest.pages(made)]
    assert found.root == manifest.encode_root(made, refs)
    assert (found.digest, found.size_bytes) == (made.digest, made.size_bytes)
    assert (found.file_count, list(found.pages)) == (made.file_count, refs)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_the_golden_vectors_hold(case: dict) -> None:
    kinds = [StoredFile, Symlink, EmptyDirectory, RemoteAsset]
    check_same([kinds[row[0]](*row[1:]) for row in case["entries"]])


@given(st.lists(paths, max_size=20))
def test_any_paths_come_to_the_same_manifest_or_the_same_refusal(names: list[str]) -> None:
    entries: list[Entry] = [stored(name) for name in names]
    try:
        Manifest.of(entries)
    except BadInput as error:
        with pytest.raises(type(error)):
            built(sorted(entries, key=lambda entry: entry.path))
    else:
        check_same(entries)


def test_pages_are_cut_alike_however_many_there_are() -> None:
    entries: list[Entry] = [stored(f"{number:05}") for number in range(40_000)]
    check_same(entries)
    assert len(built(entries)[1]) > 5


def test_what_lies_under_an_entry_is_refused_wherever_it_stands() -> None:
    for names in (["a", "a/b"], ["a", "a b", "a!", "a/b"], ["a", "a-", "a-/b"], ["a/b", "a/b/c/d"]):
        with pytest.raises(BadPath, match="lies under"):
            built([stored(name) for name in sorted(names)])
    built([stored(name) for name in ("a", "a-b", "a.", "aa/b", "b/a")])


def test_order_values_and_limits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (["b", "a"], ["a", "a"]):
        with pytest.raises(BadPath, match="out of order"):
            built([stored(name) for name in names])
    with pytest.raises(BadInput):
        built([StoredFile("a", 1, Digest("b3:no"))])
    with pytest.raises(BadPath):
        built([Symlink("a", "/etc/passwd")])
    with pytest.raises(LimitExceeded):
        built([stored("a", 2**62), stored("b", 2**62)])
    monkeypatch.setattr("begat.builder.MAX_ENTRIES", 2)
    with pytest.raises(LimitExceeded):
        built([stored("a"), stored("b"), stored("c")])


def test_metadata_of_entries_is_told_and_is_no_part_of_the_content() -> None:
    bare = stored("a")
    found, _ = built([StoredFile("a", 1, bare.digest, metadata={"x": 1})])
    assert found.entry_metadata == {"a": {"x": 1}}
    assert found.digest == built([bare])[0].digest


def test_a_change_of_one_percent_that_is_contiguous_writes_about_its_share_of_the_pages() -> None:
    names = [f"{number // 1000:03}/{number:06}.jpg" for number in range(100_000)]
    before = {ref.digest for ref in built([stored(name) for name in names], 512)[0].pages}
    assert len(before) >= 20
    changed = set(names[50_000:51_000])
    after = built([stored(n, salt="new" if n in changed else "") for n in names], 512)[0].pages
    new = [ref for ref in after if ref.digest not in before]
    firsts = [ref.first_path for ref in after] + ["~"]
    touched = [a for a, b in pairwise(firsts) if any(a <= name < b for name in changed)]
    assert [ref.first_path for ref in new] == touched
    assert len(new) <= 2
