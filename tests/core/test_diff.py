"""What changed between two versions."""

import json

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from begat.diff import Diff, diff
from begat.model import Digest, EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink
from begat.paths import path_key


def stored(
    path: str, content: str = "x", *, size_bytes: int = 10, is_executable: bool = False
) -> StoredFile:
    """A stored file whose digest tells its content."""
    return StoredFile(path, size_bytes, Digest(f"b3:{content}"), is_executable)


def test_two_equal_versions_have_no_difference() -> None:
    entries = [stored("a"), Symlink("b", "a"), EmptyDirectory("c"), RemoteAsset("d", "s3://b/d")]
    found = diff(entries, list(entries))
    assert found.is_empty
    assert not found
    assert found.unchanged_count == 4
    assert found.summary() == "no difference (4 unchanged)"


def test_two_empty_versions_have_no_difference() -> None:
    assert diff([], []).summary() == "no difference"


def test_what_came_went_and_changed_is_told_apart() -> None:
    old = [stored("a"), stored("b", "1", size_bytes=5), stored("c", "gone", size_bytes=3)]
    new = [stored("a"), stored("b", "2", size_bytes=7), stored("d", "new", size_bytes=2)]
    found = diff(old, new)
    assert found == Diff(
        added=(new[2],), removed=(old[2],), changed=((old[1], new[1]),), unchanged_count=1
    )
    assert (found.added_bytes, found.removed_bytes) == (9, 8)
    assert found.summary() == "1 added, 1 removed, 1 changed, 1 unchanged (+9 B, -8 B)"


def test_a_file_at_another_path_is_renamed_and_costs_no_bytes() -> None:
    old, new = stored("z/model.pt", "w"), stored("a/model.pt", "w")
    found = diff([old], [new])
    assert found == Diff(renamed=((old, new),))
    assert (found.added_bytes, found.removed_bytes) == (0, 0)


def test_files_of_equal_content_are_renamed_in_the_order_of_their_paths() -> None:
    old, new = [stored("a"), stored("b"), stored("c")], [stored("x"), stored("y")]
    found = diff(old, new)
    assert found.renamed == ((old[0], new[0]), (old[1], new[1]))
    assert found.removed == (old[2],)


def test_empty_files_are_not_taken_for_renamed() -> None:
    found = diff([stored("a", size_bytes=0)], [stored("b", size_bytes=0)])
    assert not found.renamed
    assert len(found.added) == len(found.removed) == 1


def test_a_copy_is_added_and_not_renamed() -> None:
    found = diff([stored("a")], [stored("a"), stored("b")])
    assert found == Diff(added=(stored("b"),), unchanged_count=1)


def test_a_remote_asset_with_the_same_pin_is_renamed() -> None:
    old = RemoteAsset("a", "https://h/x", 3, 'etag:"1"')
    assert diff([old], [replace(old, path="b")]).renamed == ((old, replace(old, path="b")),)


def test_the_executable_bit_and_the_kind_of_an_entry_are_changes() -> None:
    old = [stored("a"), stored("b")]
    new = [stored("a", is_executable=True), Symlink("b", "a")]
    assert diff(old, new).changed == tuple(zip(old, new, strict=True))


def test_metadata_of_an_entry_is_no_change() -> None:
    old = stored("a")
    assert diff([old], [replace(old, metadata={"label": 1})]).is_empty


def test_paths_are_compared_as_bytes() -> None:
    # As text, the first is behind the second in UTF-16 only; as UTF-8 the order is by code point.
    old, new = [stored("\uff21")], [stored("\uff21"), stored("\U0001f600", "y")]
    assert diff(old, new) == Diff(added=(new[1],), unchanged_count=1)


def test_the_repr_shows_the_first_lines_and_how_many_more() -> None:
    found = diff([stored("gone")], [stored(f"{number:02}", str(number)) for number in range(12)])
    lines = repr(found).splitlines()
    assert lines[0] == f"<Diff: {found.summary()}>"
    assert lines[1] == "  + 00"
    assert lines[-1] == "  ... and 3 more"
    assert len(lines) == 12


def test_a_difference_is_json_with_the_names_of_the_attributes() -> None:
    old = [
        stored("a"),
        stored("b", "1"),
        Symlink("l", "a"),
        RemoteAsset("r", "s3://b/r", 5, "etag:1"),
    ]
    new = [stored("a2"), stored("b", "2"), EmptyDirectory("e")]
    found = json.loads(json.dumps(diff(old, new).to_dict()))
    assert found["renamed"][0]["old"]["path"] == "a"
    assert found["changed"][0]["new"] == {
        "path": "b",
        "kind": "file",
        "size_bytes": 10,
        "digest": "b3:2",
        "is_executable": False,
    }
    assert found["added"] == [{"path": "e", "kind": "directory"}]
    assert found["removed"] == [
        {"path": "l", "kind": "symlink", "target": "a"},
        {"path": "r", "kind": "remote", "uri": "s3://b/r", "size_bytes": 5, "pin": "etag:1"},
    ]
    assert (found["unchanged_count"], found["added_bytes"], found["removed_bytes"]) == (0, 10, 15)


def versions() -> st.SearchStrategy[list[Entry]]:
    """Versions of few paths and few contents, so that every kind of change is common."""
    contents = st.dictionaries(
        st.text("ab/é\U0001f600", min_size=1, max_size=3), st.sampled_from("123"), max_size=8
    )
    return contents.map(
        lambda made: [stored(path, made[path]) for path in sorted(made, key=path_key)]
    )


@given(versions(), versions())
def test_the_difference_turns_the_old_version_into_the_new(
    old: list[Entry], new: list[Entry]
) -> None:
    found = diff(old, new)
    paths = {entry.path: entry for entry in old}
    for entry in (*found.removed, *(before for before, _ in (*found.changed, *found.renamed))):
        assert paths.pop(entry.path) == entry
    for entry in (*found.added, *(after for _, after in (*found.changed, *found.renamed))):
        assert entry.path not in paths
        paths[entry.path] = entry
    assert sorted(paths.values(), key=lambda entry: path_key(entry.path)) == new
    assert found.unchanged_count == len(set(old) & set(new))
