"""Records compare by what they say; entries leave their metadata out of it."""

from operator import ne

import pytest

from begat.identity import digest_of
from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink

PAIRS = [
    (StoredFile("a", 1, digest_of(b"1")), StoredFile("a", 1, digest_of(b"1"), metadata={"x": 1})),
    (Symlink("a", "b"), Symlink("a", "b", metadata={"x": 1})),
    (EmptyDirectory("a"), EmptyDirectory("a", metadata={"x": 1})),
    (RemoteAsset("a", "s3://b/c"), RemoteAsset("a", "s3://b/c", metadata={"x": 1})),
]


@pytest.mark.parametrize(("plain", "noted"), PAIRS, ids=[pair[0].kind for pair in PAIRS])
def test_metadata_makes_no_other_entry(plain: Entry, noted: Entry) -> None:
    assert plain == noted
    assert not ne(plain, noted)  # a method of its own
    assert len({plain, noted}) == 1


def test_entries_of_other_paths_kinds_or_content_differ() -> None:
    entries = {
        *(plain for plain, _ in PAIRS),
        *(Symlink("a", "c"), Symlink("b", "b"), EmptyDirectory("b")),
        StoredFile("a", 1, digest_of(b"2")),
        StoredFile("a", 1, digest_of(b"1"), is_executable=True),
    }
    assert len(entries) == 9
    assert EmptyDirectory("a") != RemoteAsset("a", "s3://b/c")
    assert Symlink("a", "b") != Symlink("a", "c")
