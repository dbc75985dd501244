"""Versions as users meet them: numbers, labels, metadata, drafts, remote assets, downloads, deletion."""

import io
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import begat
from begat import Artifact, files, snapshot, statcache
from begat.errors import (
    AliasMoved,
    AliasReserved,
    AmbiguousReference,
    ArtifactNotFound,
    BadInput,
    BadMetadata,
    BadName,
    BadPath,
    BadReference,
    BytesRetired,
    DestinationDiffers,
    DigestMismatch,
    RemoteChanged,
    TypeMismatch,
    UnsupportedFile,
    VersionDeleted,
    VersionExists,
    VersionNotFound,
)
from begat.listing import Forest
from trees import MIB, File, Link, make, seen

Store = begat.Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with begat.open_store(tmp_path / "a-store") as opened:
        yield opened


def log(store: Store, content: str = "one", name: str = "digits", **options) -> begat.Version:
    return store.log_artifact(name, content.encode(), **options)


# --- numbers, types, references ---


def test_numbers_count_from_one_for_each_name(store: Store) -> None:
    assert [log(store, text).ref for text in "abc"] == ["digits:v1", "digits:v2", "digits:v3"]
    assert log(store, "a", "vision/resnet").ref == "vision/resnet:v1"


def test_every_form_of_a_reference_means_its_version(store: Store) -> None:
    first = log(store, "a", version="1.4.0", aliases=["best"])
    last = log(store, "b")
    forms = [
        "digits:v1",
        "digits:best",
        "digits:1.4.0",
        f"digits@{first.digest[:9]}",
        "begat://digits:v1",
    ]
    assert {store.get_artifact(ref).uid for ref in forms} == {first.uid}
    for ref in ("digits", "digits:latest", "digits:v2", f"digits@{last.digest}"):
        assert store.get_artifact(ref).uid == last.uid


def test_a_digest_means_the_newest_version_that_is_not_deleted(store: Store) -> None:
    first, _, third = log(store, "a"), log(store, "b"), log(store, "a")
    assert store.get_artifact(f"digits@{first.digest}").number == 3
    third.delete()
    assert store.get_artifact(f"digits@{first.digest}").number == 1


def test_a_digest_prefix_that_fits_two_contents_is_ambiguous(store: Store) -> None:
    # 4,096 contents and six digits: a pair must be searched for, by the digest that begat itself computes.
    from begat.identity import digest_of
    from begat.manifest import Manifest
    from begat.model import StoredFile

    known: dict[str, bytes] = {}
    for number in range(200_000):
        data = b"%d" % number
        prefix = Manifest((StoredFile("digits", len(data), digest_of(data)),)).digest[:9]
        if prefix in known:
            break
        known[prefix] = data
    one, two = store.log_artifact("digits", known[prefix]), store.log_artifact("digits", data)
    with pytest.raises(AmbiguousReference) as caught:
        store.get_artifact(f"digits@{prefix}")
    assert one.ref in str(caught.value)
    assert two.ref in str(caught.value)


def test_what_does_not_exist_is_told_with_what_does(store: Store) -> None:
    log(store, aliases=["best"])
    with pytest.raises(ArtifactNotFound, match="did you mean digits"):
        store.get_artifact("digist")
    with pytest.raises(VersionNotFound, match="the newest is digits:v1"):
        store.get_artifact("digits:v9")
    with pytest.raises(VersionNotFound, match="best"):
        store.get_artifact("digits:bets")
    with pytest.raises(VersionNotFound):
        store.get_artifact("digits:2.0.0")
    with pytest.raises(VersionNotFound):
        store.get_artifact("digits@b3:000000")


@pytest.mark.parametrize(
    "ref", ["", "digits:", "digits:v0", "digits:1.4", "digits@b3:12", "a b", "digits:LATEST"]
)
def test_what_is_no_reference_is_told_before_anything_is_looked_up(store: Store, ref: str) -> None:
    with pytest.raises(BadReference):
        store.get_artifact(ref)


def test_the_first_log_gives_the_type_and_another_one_is_refused(store: Store) -> None:
    assert log(store, name="plain").type == "data"
    assert log(store, type="dataset").type == "dataset"
    assert log(store, "b").type == "dataset"
    with pytest.raises(TypeMismatch, match="dataset"):
        log(store, "c", type="model")
    assert len(store.versions("digits")) == 2


# --- content that is the latest already ---


def test_equal_content_and_metadata_make_no_new_version(store: Store) -> None:
    first = log(store, metadata={"a": 1, "b": [2]})
    again = log(store, metadata={"b": [2], "a": 1}, tags=["seen"])
    assert (again.is_new, again.uid, again.tags) == (False, first.uid, ("seen",))
    assert [v.number for v in store.versions("digits")] == [1]


def test_other_metadata_make_a_new_version_of_the_same_content(store: Store) -> None:
    first, second = log(store, metadata={"a": 1}), log(store, metadata={"a": 2})
    assert second.is_new
    assert second.digest == first.digest


def test_other_metadata_of_an_entry_make_a_new_version(store: Store) -> None:
    one = store.log_artifact(begat.Artifact("digits").add(b"x", "x", metadata={"label": 1}))
    two = store.log_artifact(begat.Artifact("digits").add(b"x", "x", metadata={"label": 2}))
    same = store.log_artifact(begat.Artifact("digits").add(b"x", "x", metadata={"label": 2}))
    assert (one.number, two.number, same.number) == (1, 2, 2)


def test_if_unchanged_new_makes_a_version_all_the_same(store: Store) -> None:
    assert log(store).number == 1
    assert log(store, if_unchanged="new").number == 2


def test_what_the_store_has_is_shared_whatever_name_it_was_logged_under(store: Store) -> None:
    large, small = os.urandom(3 * MIB), os.urandom(1000)
    first = store.log_artifact(Artifact("one").add(large, "a.bin").add(small, "b.bin"))
    assert (first.size_bytes, first.shared_bytes) == (3 * MIB + 1000, 0)
    assert first.size_bytes < first.new_bytes < first.size_bytes + 20_000  # parts, manifest, record

    other = Artifact("another/name", "model").add(small, "x/y.txt").add(large, "z")
    moved = store.log_artifact(other.add(b"new", "new"))
    assert moved.shared_bytes == 3 * MIB + 1000
    assert moved.size_bytes == moved.shared_bytes + 3
    assert moved.new_bytes < 2000

    grown = store.log_artifact(Artifact("one").add(large + os.urandom(MIB), "a.bin"))
    assert 2 * MIB < grown.shared_bytes < 3 * MIB
    assert grown.new_bytes == pytest.approx(grown.size_bytes - grown.shared_bytes, abs=20_000)


def test_what_a_version_has_twice_is_stored_once(store: Store) -> None:
    large, small = os.urandom(3 * MIB), os.urandom(1000)
    draft = Artifact("twice")
    for path, data in (("a", large), ("b", large), ("c", small), ("d", small)):
        draft.add(data, path)
    version = store.log_artifact(draft)
    assert version.shared_bytes == 3 * MIB + 1000
    assert version.new_bytes < 3 * MIB + 20_000


def test_what_was_compressed_is_not_shared(store: Store) -> None:
    for lines in (10_000, 200_000):
        text = "".join(f"line {number} of {lines}\n" for number in range(lines))
        version = store.log_artifact("text", text.encode())
        assert version.new_bytes < version.size_bytes / 2
        assert version.shared_bytes == 0


def test_content_equal_to_an_older_version_is_new_and_shares_its_bytes(store: Store) -> None:
    data = os.urandom(3 * MIB)
    store.log_artifact("digits", data)
    store.log_artifact("digits", b"between")
    third = store.log_artifact("digits", data)
    assert (third.is_new, third.number) == (True, 3)
    assert third.new_bytes < 2000
    assert third.read_bytes("digits") == data


def test_a_misspelled_policy_is_a_type_error(store: Store) -> None:
    with pytest.raises(TypeError):
        log(store, if_unchanged="maybe")
    with pytest.raises(TypeError):
        log(store, bump="huge")
    with pytest.raises(TypeError):
        log(store, version="1.0.0", bump="minor")
    with pytest.raises(TypeError):
        log(store, aliases="best")
    assert store.artifacts() == []


# --- SemVer ---


def test_bump_counts_on_from_the_highest_label(store: Store) -> None:
    labels = [
        log(store, f"{i}", bump=part).version
        for i, part in enumerate(["minor", "patch", "major", "minor"])
    ]
    assert labels == ["0.1.0", "0.1.1", "1.0.0", "1.1.0"]
    log(store, "back", version="0.5.0")
    assert log(store, "on", bump="patch").version == "1.1.1"


def test_a_label_belongs_to_one_version(store: Store) -> None:
    log(store, "a", version="1.0.0")
    with pytest.raises(VersionExists, match="digits:v1"):
        log(store, "b", version="1.0.0")
    assert len(store.versions("digits")) == 1


def test_reused_content_takes_a_label_only_if_it_has_none_or_the_same(store: Store) -> None:
    log(store)
    assert log(store, version="1.0.0").version == "1.0.0"
    assert not log(store, version="1.0.0").is_new
    with pytest.raises(VersionExists):
        log(store, version="2.0.0")
    assert (
        log(store, bump="minor").version == "1.0.0"
    )  # it has a label already, and nothing changed


@pytest.mark.parametrize("label", ["1.4", "v1.4.0", "01.0.0", "1.0.0-", "latest"])
def test_what_is_no_semver_label_is_refused_before_anything_is_stored(
    store: Store, label: str
) -> None:
    with pytest.raises(BadName):
        log(store, version=label)
    assert store.artifacts() == []


# --- aliases, tags, descriptions ---


def test_an_alias_moves_and_remembers_where_it_was(store: Store) -> None:
    one, two = log(store, "a", aliases=["best"]), log(store, "b")
    store.alias("digits:v2", "best")
    assert (one.aliases, two.aliases) == ((), ("best", "latest"))
    one.add_aliases("best", "old")
    one.remove_aliases("old")
    moves = [(move.from_number, move.to_number) for move in store.alias_history("digits", "best")]
    assert moves == [(None, 1), (1, 2), (2, 1)]
    assert [move.to_number for move in store.alias_history("digits", "old")] == [1, None]


def test_an_alias_that_is_not_where_it_was_expected_stays(store: Store) -> None:
    log(store, "a", aliases=["best"])
    two = log(store, "b")
    for expected in ("v2", begat.ABSENT):
        with pytest.raises(AliasMoved, match="digits:v1"):
            store.alias("digits:v2", "best", expect=expected)
    store.alias("digits:v2", "best", expect="v1")
    store.alias("digits:v1", "first", expect=begat.ABSENT)
    assert two.aliases == ("best", "latest")
    with pytest.raises(BadInput):
        store.alias("digits:v1", "best", expect="best")


def test_of_two_that_expect_the_same_one_moves_the_alias(store: Store) -> None:
    log(store, "a", aliases=["best"])
    log(store, "b")
    log(store, "c")
    outcomes: list[str] = []

    def move(ref: str) -> None:
        try:
            store.alias(ref, "best", expect="v1")
            outcomes.append("moved")
        except AliasMoved:
            outcomes.append("refused")

    threads = [threading.Thread(target=move, args=(ref,)) for ref in ("digits:v2", "digits:v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused"]


@pytest.mark.parametrize("alias", ["latest", "Latest", "v3", "V3", "1.0.0", "", "a b", "x" * 129])
def test_an_alias_that_could_mean_something_else_is_refused(store: Store, alias: str) -> None:
    version = log(store)
    with pytest.raises((BadName, AliasReserved)):
        store.alias("digits:v1", alias)
    with pytest.raises((BadName, AliasReserved)):
        log(store, "b", aliases=[alias])
    assert version.aliases == ("latest",)
    assert len(store.versions("digits")) == 1


def test_an_alias_is_not_removed_from_another_version_than_it_names(store: Store) -> None:
    one, two = log(store, "a"), log(store, "b", aliases=["best"])
    with pytest.raises(AliasMoved):
        one.remove_aliases("best")
    assert "best" in two.aliases


def test_tags_and_descriptions_change_and_the_version_does_not(store: Store) -> None:
    version = log(store, tags=["raw"], description="first")
    version.add_tags("checked", "raw")
    version.remove_tags("raw", "never")
    version.set_description("better")
    assert (version.tags, version.description) == (("checked",), "better")
    assert store.get_artifact("digits").digest == version.digest
    store.tag_artifact("digits", "public")
    store.describe_artifact("digits", "pictures of digits")
    [record] = store.artifacts(tag="public", query="PICTURES")
    assert (record.tags, record.description) == (("public",), "pictures of digits")
    store.tag_artifact("digits", "public", remove=True)
    assert store.artifacts(tag="public") == []


def test_artifacts_are_found_by_type_tag_and_text(store: Store) -> None:
    log(store, name="digits", type="dataset")
    log(store, name="digits-model", type="model")
    assert [a.name for a in store.artifacts()] == ["digits", "digits-model"]
    assert [a.name for a in store.artifacts(type="model")] == ["digits-model"]
    assert [a.name for a in store.artifacts(query="DIGITS-")] == ["digits-model"]
    assert [(a.latest_number, a.version_count) for a in store.artifacts(query="model")] == [(1, 1)]


# --- metadata ---


def test_metadata_is_kept_as_it_was_when_it_was_given(store: Store) -> None:
    given = {"lr": 0.1, "layers": [1, {"ü": None}]}
    draft = begat.Artifact("digits", metadata=given).add(b"x", "x", metadata={"source": "web"})
    given["layers"] = "changed later"
    version = store.log_artifact(draft)
    assert store.get_artifact("digits").metadata == {"lr": 0.1, "layers": [1, {"ü": None}]}
    assert [entry.metadata for entry in version.entries] == [{"source": "web"}]
    assert [entry.metadata for entry in store.get_artifact("digits").entries] == [{"source": "web"}]


def test_metadata_that_was_read_can_be_changed_without_changing_the_version(store: Store) -> None:
    log(store, metadata={"lr": 0.1, "layers": [1]})
    version = store.get_artifact("digits")
    read: dict[str, Any] = dict(version.metadata)
    read["layers"].append(2)
    read["lr"] = 0.2
    assert version.metadata == {"lr": 0.1, "layers": [1]}
    assert version.draft().metadata == {"lr": 0.1, "layers": [1]}


@pytest.mark.parametrize(
    "bad", [{"x": float("nan")}, {1: 2}, {"x": object()}, {"x": b"y"}, [1], {"x": "\ud800"}]
)
def test_metadata_that_is_not_json_is_refused_when_it_is_given(bad: object) -> None:
    with pytest.raises(BadMetadata):
        begat.Artifact("digits", metadata=bad)  # type: ignore[arg-type]
    with pytest.raises(BadMetadata):
        begat.Artifact("digits").add(b"x", "x", metadata=bad)  # type: ignore[arg-type]


# --- what can be added ---


def test_a_folder_goes_to_the_root_and_a_file_under_its_name(tmp_path: Path) -> None:
    make({"d/a": File(1, 0), "d/e/b": File(1, 0)}, tmp_path)
    draft = begat.Artifact("x").add(tmp_path / "d").add(tmp_path / "d/a", overwrite=True)
    draft.add(tmp_path / "d", "again").add(tmp_path / "d/a", "once/more").add(io.BytesIO(b"f"), "f")
    assert [planned.path for planned in draft.entries] == [
        "a",
        "again/a",
        "again/e/b",
        "e/b",
        "f",
        "once/more",
    ]


def test_a_path_is_not_replaced_unless_asked_for(tmp_path: Path) -> None:
    make({"d/a": File(3, 0), "d/f": File(1, 0)}, tmp_path)
    (tmp_path / "d/b").mkdir()
    draft = begat.Artifact("x").add(b"1", "a").add(b"1", "b")
    with pytest.raises(BadPath, match="'a'"):
        draft.add(tmp_path / "d", exclude="b")
    with pytest.raises(BadPath, match="'b'"):  # an empty folder does not replace a file either
        draft.add(tmp_path / "d", exclude="a")
    assert [planned.path for planned in draft.entries] == ["a", "b"]
    draft.add(tmp_path / "d/a", overwrite=True)
    assert sum(planned.size_bytes for planned in draft.entries) == 4


def test_a_path_cannot_be_a_file_and_a_folder(store: Store) -> None:
    draft = begat.Artifact("x").add(b"1", "a").add(b"2", "a/b")
    with pytest.raises(BadPath, match="'a'"):
        store.log_artifact(draft)
    assert store.artifacts() == []


def test_an_empty_folder_that_gets_a_file_is_no_entry_of_its_own(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "d/empty").mkdir(parents=True)
    version = store.log_artifact(begat.Artifact("x").add(tmp_path / "d").add(b"1", "empty/a"))
    assert [(entry.path, entry.kind) for entry in version.entries] == [("empty/a", "file")]


def test_include_exclude_and_begatignore_choose_files(tmp_path: Path) -> None:
    make(
        {f"d/{name}": File(1, 0) for name in ("a.csv", "b.txt", "sub/c.csv", "sub/d.csv")}, tmp_path
    )
    (tmp_path / "d/.begatignore").write_text("d.csv\n")
    draft = begat.Artifact("x").add(tmp_path / "d", include="**/*.csv", exclude="a*")
    assert [planned.path for planned in draft.entries] == ["sub/c.csv"]


def test_version_control_and_stores_are_left_out_with_a_note(store: Store, tmp_path: Path) -> None:
    make({".git/config": File(1, 0), "a": File(1, 0), "sub/.git": File(1, 0)}, tmp_path)
    with pytest.warns(begat.BegatWarning, match="left out"):
        version = store.log_artifact("all", tmp_path)  # the store lies in this folder as well
    assert [entry.path for entry in version.entries] == ["a", "sub"]


def test_what_is_neither_file_nor_folder_is_refused_and_named(store: Store, tmp_path: Path) -> None:
    make({"d/a": File(1, 0)}, tmp_path)
    os.mkfifo(tmp_path / "d/pipe")
    with pytest.raises(UnsupportedFile, match="pipe"):
        store.log_artifact("x", tmp_path / "d")
    with pytest.raises(UnsupportedFile, match="pipe"):
        store.log_artifact("x", tmp_path / "d/pipe")
    with pytest.raises(BadPath, match="does not exist"):
        store.log_artifact("x", tmp_path / "nothing")
    with pytest.raises(TypeError):
        begat.Artifact("x").add(io.StringIO("text"), "x")  # type: ignore[arg-type]
    assert store.artifacts() == []


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_kept_or_followed(
    tmp_path: Path,
) -> None:
    make({"d/a": File(1, 0), "d/in": Link("a"), "e": File(1, 0)}, tmp_path)
    kept = begat.Artifact("x").add(tmp_path / "d")
    assert [entry.source.__class__.__name__ for entry in kept.entries] == ["LocalFile", "Symlink"]
    followed = begat.Artifact("x").add(tmp_path / "d", symlinks="follow")
    assert [entry.source.__class__.__name__ for entry in followed.entries] == [
        "LocalFile",
        "LocalFile",
    ]
    with pytest.raises(UnsupportedFile):
        begat.Artifact("x").add(tmp_path / "d", symlinks="refuse")
    (tmp_path / "d/out").symlink_to("../e")
    with pytest.raises(BadPath):
        begat.Artifact("x").add(tmp_path / "d")
    with pytest.raises(UnsupportedFile):
        begat.Artifact("x").add(tmp_path / "d", symlinks="follow")


# --- reading ---


def test_files_are_read_listed_and_opened(store: Store, tmp_path: Path) -> None:
    make({"d/a.csv": File(10, 1), "d/sub/b.csv": File(MIB + 5, 2), "d/l": Link("a.csv")}, tmp_path)
    version = store.log_artifact("x", tmp_path / "d")
    assert [entry.path for entry in version.files("*.csv")] == ["a.csv"]
    assert [entry.path for entry in version.files()] == ["a.csv", "sub/b.csv"]
    assert version.read_bytes("sub/b.csv") == (tmp_path / "d/sub/b.csv").read_bytes()
    with version.open("a.csv") as file:
        assert file.read() == (tmp_path / "d/a.csv").read_bytes()
        assert not file.writable()
    assert (version.size_bytes, version.file_count) == (MIB + 15, 2)
    for bad in ("sub", "l", "nothing", "../a.csv"):
        with pytest.raises(BadPath):
            version.read_bytes(bad)


def test_file_is_the_only_file_of_a_version(store: Store) -> None:
    version = store.log_artifact("model", b"weights")
    assert version.file.read_bytes() == b"weights"
    with pytest.raises(BadPath):
        _ = store.log_artifact(begat.Artifact("two").add(b"1", "a").add(b"2", "b")).file


def test_an_empty_version_is_a_version(store: Store, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    version = store.log_artifact("nothing", tmp_path / "d")
    assert (version.entries, version.size_bytes) == ((), 0)
    assert list(version.path.iterdir()) == []


def test_diff_tells_what_changed(store: Store) -> None:
    one = store.log_artifact(begat.Artifact("x").add(b"1", "a").add(b"2", "b").add(b"3", "c"))
    two = store.log_artifact(one.draft().remove("a").add(b"22", "b", overwrite=True).add(b"4", "d"))
    found = one.diff(two)
    assert [entry.path for entry in found.added] == ["d"]
    assert [entry.path for entry in found.removed] == ["a"]
    assert [after.path for _, after in found.changed] == ["b"]


def test_versions_look_well_in_a_terminal_and_a_notebook(store: Store) -> None:
    version = log(store, metadata={"<b>": "x"}, aliases=["best"])
    assert "digits:v1" in repr(version)
    assert "&lt;b&gt;" in version._repr_html_()
    assert "2 entries" in repr(begat.Artifact("x").add(b"1", "a").add(b"2", "b"))


# --- drafts ---


def test_a_draft_edits_a_version_into_the_next_one(store: Store) -> None:
    one = store.log_artifact(
        begat.Artifact(
            "x", "dataset", metadata={"rows": 1}, description="d", aliases=["best"], tags=["t"]
        )
        .add(b"1", "a", metadata={"m": 1})
        .add(b"2", "sub/b")
        .add(b"3", "sub/c")
    )
    draft = one.draft().add(b"11", "a", overwrite=True).remove("sub").add(b"4", "new")
    draft.metadata["rows"] = 2
    two = store.log_artifact(draft)
    assert {entry.path: two.read_bytes(entry.path) for entry in two.entries} == {
        "a": b"11",
        "new": b"4",
    }
    assert (two.number, two.type, two.metadata, two.description) == (2, "dataset", {"rows": 2}, "d")
    assert (two.aliases, two.tags, two.version) == (("latest",), (), None)
    with pytest.raises(BadPath):
        draft.remove("sub")


def test_a_draft_that_changes_nothing_is_no_new_version(store: Store) -> None:
    one = store.log_artifact(
        begat.Artifact("x", metadata={"a": 1}).add(b"1", "a", metadata={"m": 1})
    )
    assert not store.log_artifact(one.draft()).is_new


def test_what_a_draft_keeps_is_neither_read_nor_stored_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"d/large": File(3 * MIB, 2), "d/small": File(100, 0)}, tmp_path)
    one = store.log_artifact("x", tmp_path / "d")
    expected = {entry.path: one.read_bytes(entry.path) for entry in one.entries}
    shutil.rmtree(tmp_path / "d")
    read: list[int] = []
    original = type(store.objects).read

    def counting(objects, name: str, *, offset: int, length: int) -> bytes:
        read.append(length)
        return original(objects, name, offset=offset, length=length)

    draft = one.draft().add(b"new", "new")
    monkeypatch.setattr(type(store.objects), "read", counting)
    two = store.log_artifact(draft)
    monkeypatch.undo()
    assert sum(read) < 10_000  # the list of its parts
    assert two.new_bytes < 2000
    assert {e.path: two.read_bytes(e.path) for e in two.entries} == {**expected, "new": b"new"}


def test_a_draft_of_bytes_that_are_gone_is_refused(store: Store) -> None:
    one = log(store, "a")
    log(store, "b")
    draft = one.draft()
    store.catalog.labels.retire(one.uid, by="test")
    store.gc(dry_run=False)
    with pytest.raises(BytesRetired):
        one.draft()
    with pytest.raises(begat.errors.ObjectMissing, match="Add the file itself"):
        store.log_artifact(draft)


# --- remote assets ---


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_remote_assets_are_pinned_and_fetched(
    store: Store, tmp_path: Path, web: tuple[str, Path]
) -> None:
    url, folder = web
    (folder / "w.bin").write_bytes(b"web")
    (tmp_path / "f.bin").write_bytes(b"file")
    draft = (
        begat.Artifact("x")
        .add(b"1", "a")
        .add_remote(f"{url}/w.bin", "remote/w.bin", metadata={"m": 1})
    )
    version = store.log_artifact(draft.add_remote((tmp_path / "f.bin").as_uri()))
    assert [(entry.path, entry.kind) for entry in version.entries] == [
        ("a", "file"),
        ("f.bin", "remote"),
        ("remote/w.bin", "remote"),
    ]
    assert version.file_count == 3
    assert version.size_bytes == 8
    assert seen(version.download(tmp_path / "without")).keys() == {"a"}
    assert [path.name for path in version.path.iterdir()] == ["a"]
    copied = seen(version.download(tmp_path / "with", remote=True))
    assert copied["f.bin"] == ("file", (b"file", False))
    assert copied["remote/w.bin"] == ("file", (b"web", False))
    with pytest.raises(BadPath, match="remote"):
        version.read_bytes("f.bin")
    assert not store.log_artifact(version.draft()).is_new


def test_a_remote_asset_that_changed_is_an_error_and_leaves_no_file(
    store: Store, tmp_path: Path, web: tuple[str, Path]
) -> None:
    url, folder = web
    (folder / "w.bin").write_bytes(b"web")
    local = tmp_path / "f.bin"
    local.write_bytes(b"file")
    of_web = store.log_artifact(begat.Artifact("w").add_remote(f"{url}/w.bin"))
    of_file = store.log_artifact(begat.Artifact("f").add_remote(local.as_uri()))
    (folder / "w.bin").write_bytes(b"WEB")
    os.utime(folder / "w.bin", (1, 1))
    before = local.stat()
    local.write_bytes(b"FILE")
    os.utime(
        local, ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # the same size and time, other bytes
    for version in (of_web, of_file):
        with pytest.raises(RemoteChanged):
            version.download(tmp_path / version.name, remote=True)
        assert seen(tmp_path / version.name) == {}


def test_a_uri_with_a_secret_is_refused(store: Store) -> None:
    with pytest.raises(BadInput) as caught:
        begat.Artifact("x").add_remote("https://user:hunter2@example.com/f", sync=False)
    assert "hunter2" not in str(caught.value)


def test_a_uri_with_a_secret_is_stored_when_that_is_asked_for(store: Store) -> None:
    uri = "https://user:hunter2@example.com/f"
    draft = begat.Artifact("x").add_remote(uri, sync=False, allow_secrets=True)
    [entry] = store.log_artifact(draft).entries
    assert (entry.path, entry.kind, getattr(entry, "uri", "")) == ("f", "remote", uri)


def test_an_open_file_is_read_when_it_is_added_and_a_path_when_it_is_logged(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with open(tmp_path / "a", "rb") as file:
        draft = begat.Artifact("x").add(file, "open").add(tmp_path / "a", "path")
    (tmp_path / "a").write_bytes(b"new")
    version = store.log_artifact(draft)
    assert (version.read_bytes("open"), version.read_bytes("path")) == (b"old", b"new")


# --- downloads ---


@pytest.fixture
def version(store: Store, tmp_path: Path) -> begat.Version:
    make(
        {
            "d/a": File(10, 1),
            "d/run.sh": File(5, 1, True),
            "d/sub/b": File(MIB, 2),
            "d/l": Link("a"),
        },
        tmp_path,
    )
    return store.log_artifact("team/x", tmp_path / "d")


def test_a_download_goes_to_a_folder_called_after_the_version(version: begat.Version) -> None:
    assert version.download() == Path("team-x-v1")
    assert Path("team-x-v1/sub/b").stat().st_size == MIB


def test_downloading_again_onto_the_same_files_changes_nothing(
    version: begat.Version, tmp_path: Path
) -> None:
    target = version.download(tmp_path / "t")
    before = {path: (target / path).lstat().st_ino for path in seen(target)}
    (target / "own").write_text("stays")
    version.download(target)
    assert {path: (target / path).lstat().st_ino for path in before} == before
    assert (target / "own").read_text() == "stays"


@pytest.mark.parametrize("what", ["content", "size", "kind", "link", "executable"])
def test_a_file_that_differs_is_named_before_anything_is_written(
    version: begat.Version, tmp_path: Path, what: str
) -> None:
    target = version.download(tmp_path / "t")
    (target / "a").unlink()  # comes first, and would be written first
    path = {"link": "l", "executable": "run.sh"}.get(what, "sub/b")
    place = target / path
    if what == "executable":
        place.chmod(0o644)
    else:
        data = b"" if what == "link" else place.read_bytes()
        place.unlink()
        if what == "kind":
            place.mkdir()
        elif what == "link":
            place.symlink_to("run.sh")
        else:
            place.write_bytes(b"x" + data[1:] if what == "content" else data + b"x")
    before = seen(target)
    with pytest.raises(DestinationDiffers, match=path):
        version.download(target)
    assert seen(target) == before
    with pytest.warns(begat.BegatWarning, match=path):
        version.download(target, overwrite="preserve")
    assert seen(target)[path] == before[path]
    assert (target / "a").exists()
    if what == "kind":
        with pytest.raises(DestinationDiffers):
            version.download(target, overwrite="overwrite")
        return
    version.download(target, overwrite="overwrite")
    assert seen(target) == seen(tmp_path / "d")


def test_an_unknown_policy_is_a_type_error(version: begat.Version) -> None:
    with pytest.raises(TypeError):
        version.download("t", overwrite="maybe")  # type: ignore[arg-type]
    assert not Path("t").exists()


def test_include_downloads_some_files(version: begat.Version, tmp_path: Path) -> None:
    assert seen(version.download(tmp_path / "t", include="sub/**")).keys() == {"sub", "sub/b"}
    assert seen(version.download(tmp_path / "u", include=["a", "*.sh"])).keys() == {"a", "run.sh"}
    with pytest.raises(BadPath, match="no file"):
        version.download(tmp_path / "v", include="nothing*")
    assert not (tmp_path / "v").exists()


def test_a_link_in_the_destination_is_not_followed(version: begat.Version, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/sub").symlink_to(tmp_path / "outside")
    with pytest.raises(DestinationDiffers):
        version.download(tmp_path / "t")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_download_may_be_interrupted_anywhere_and_leaves_no_half_file(
    version: begat.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seen(tmp_path / "d")
    operations: list[str] = []
    monkeypatch.setattr(files, "fault", lambda operation, path: operations.append(operation))
    version.download(tmp_path / "counted")
    assert len(operations) > 10
    for stop_at in range(len(operations)):
        left = itertools.count()

        def stop(operation: str, path: str, left=left, stop_at=stop_at) -> None:
            if next(left) == stop_at:
                raise KeyboardInterrupt

        target = tmp_path / f"t{stop_at}"
        monkeypatch.setattr(files, "fault", stop)
        with pytest.raises(KeyboardInterrupt):
            version.download(target)
        monkeypatch.setattr(files, "fault", None)
        found = seen(target) if target.exists() else {}
        if operations[stop_at] == "remove":  # of a temporary file, which therefore stays
            found = {path: node for path, node in found.items() if ".begat-" not in path}
        assert found.items() <= expected.items()
        version.download(target)  # and it can be finished
        assert expected.items() <= seen(target).items()
        shutil.rmtree(target)


# --- deletion ---


def test_a_deleted_version_keeps_its_number_and_its_place(store: Store) -> None:
    with store.start_run("r") as run:
        one = run.log_artifact("digits", b"a")
    one.delete()
    with pytest.raises(VersionDeleted):
        store.get_artifact("digits:v1")
    with pytest.raises(VersionDeleted):
        _ = one.entries
    assert one.state == "deleted"
    assert run.outputs == (one,)
    assert store.lineage(run).versions
    assert list(store.versions("digits")) == []
    assert [v.number for v in store.versions("digits", with_deleted=True)] == [1]
    again = log(store, "a")
    assert (again.number, again.is_new) == (2, True)
    with pytest.raises(VersionDeleted):
        one.delete()


def test_latest_is_the_highest_number_that_is_not_deleted(store: Store) -> None:
    one, two = log(store, "a"), log(store, "b")
    two.delete()
    assert store.get_artifact("digits:latest").uid == one.uid
    assert one.aliases == ("latest",)
    assert not log(store, "a").is_new
    assert log(store, "b").number == 3


def test_a_version_with_an_alias_is_deleted_only_by_force(store: Store) -> None:
    version = log(store, aliases=["best"])
    with pytest.raises(AliasReserved, match="best"):
        store.delete("digits:v1")
    assert version.state == "live"
    store.delete("digits:v1", force=True)
    assert store.alias_history("digits", "best")[-1].to_number is None
    with pytest.raises(VersionNotFound):
        store.get_artifact("digits:best")


@pytest.mark.parametrize("ref", ["digits", "digits:latest", "digits:best", "digits:1.0.0"])
def test_only_a_number_or_a_digest_names_what_is_deleted(store: Store, ref: str) -> None:
    version = log(store, aliases=["best"], version="1.0.0")
    with pytest.raises(BadInput, match="digits:v1"):
        store.delete(ref, force=True)
    assert version.state == "live"
    store.delete(f"digits@{version.digest[:12]}", force=True)
    assert version.state == "deleted"


# --- compare-and-set ---


def test_a_version_is_stored_only_where_the_latest_is_the_expected_one(store: Store) -> None:
    first = store.log_artifact("table", b"1", expect=begat.ABSENT)
    second = store.log_artifact("table", b"2", expect="v1")
    assert (first.number, second.number) == (1, 2)
    for wrong in ("v1", "v3", begat.ABSENT):
        with pytest.raises(AliasMoved, match="table:v2"):
            store.log_artifact("table", b"3", expect=wrong)
    assert [version.number for version in store.versions("table")] == [1, 2]


def test_what_is_expected_counts_for_equal_content_too(store: Store) -> None:
    store.log_artifact("table", b"1")
    with pytest.raises(AliasMoved):
        store.log_artifact("table", b"1", expect="v2", aliases=["best"])
    assert store.get_artifact("table").aliases == ("latest",)


def test_an_artifact_that_was_expected_to_exist_is_not_made(store: Store) -> None:
    with pytest.raises(AliasMoved, match="does not exist"):
        store.log_artifact("table", b"1", expect="v1")
    assert store.artifacts() == []


def test_of_many_who_change_one_version_none_loses_what_another_stored(store: Store) -> None:
    store.log_artifact(Artifact("table").add(b"0", "0"))

    def add(i: int) -> None:
        while True:
            base = store.get_artifact("table")
            try:
                store.log_artifact(base.draft().add(b"%d" % i, str(i)), expect=f"v{base.number}")
                return
            except AliasMoved:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(1, 13)))
    assert {entry.path for entry in store.get_artifact("table").entries} == set(map(str, range(13)))
    assert len(store.versions("table")) == 13


def test_a_draft_may_expect_its_content(store: Store) -> None:
    digest = log(store).digest
    same = begat.Artifact("copy", expected_digest=digest).add(b"one", "digits")
    assert store.log_artifact(same).digest == digest
    other = begat.Artifact("other", expected_digest=digest).add(b"two", "digits")
    with pytest.raises(DigestMismatch, match=f"should be {digest}, not b3:.*no version was made"):
        store.log_artifact(other)
    assert [one.name for one in store.artifacts()] == ["copy", "digits"]


# --- several folders, kept compact ---

PLACES = st.sampled_from([None, "a", "b", "a/c", "a-b", "b/d/e", "f"])
ADDS = st.lists(st.tuples(PLACES, st.sampled_from(["dir", "empty", "f", "a"]), st.booleans()))


def drafted(
    adds: list[tuple[str | None, str, bool]], root: Path
) -> tuple[begat.Artifact, list[str]]:
    draft, refused = begat.Artifact("x"), list[str]()
    for number, (place, name, overwrite) in enumerate(adds):
        what = root / name
        try:
            draft.add(what, place, overwrite=overwrite, metadata={"n": number})
        except BadPath as error:
            refused.append(str(error))
    return draft, refused


@settings(max_examples=60)
@given(adds=ADDS)
def test_folders_that_are_kept_compact_come_to_what_single_files_come_to(
    adds: list[tuple[str | None, str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("parts")
    (root / "dir/c").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("dir/a", "dir/c/d", "dir/c-", "f", "a"):
        (root / name).write_text(name)
    (root / "dir/z").symlink_to("a")
    (root / "dir/none").mkdir()
    compact, refused = drafted(adds, root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(begat.Artifact, "_is_free", lambda self, place: False)
        single, also_refused = drafted(adds, root)
    assert refused == also_refused
    assert isinstance(single.plan, tuple)
    assert list(map(repr, compact.entries)) == list(map(repr, single.entries))
    assert len(compact.plan) == len(single.entries)
    logged = list[begat.Version | str]()
    with begat.open_store(root / "store") as store:
        for draft in (compact, single):
            try:
                logged.append(store.log_artifact(draft))
            except BadPath as error:
                logged.append(str(error))
        if isinstance(logged[0], begat.Version):
            assert isinstance(logged[1], begat.Version)
            assert (logged[1].uid, logged[1].is_new) == (logged[0].uid, False)
        else:
            assert logged[0] == logged[1]


def test_folders_apart_and_a_file_are_read_once(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statcache, "YOUNG_NS", -10 * 10**9)
    for name in ("train/1", "train/2", "test/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "labels").write_text("labels")

    def draft() -> begat.Artifact:
        made = begat.Artifact("x").add(tmp_path / "train", "train").add(tmp_path / "labels")
        return made.add(tmp_path / "test", "test")

    assert isinstance(draft().plan, Forest)
    first = store.log_artifact(draft())
    assert [entry.path for entry in first.entries] == ["labels", "test/1", "train/1", "train/2"]
    read: list[str] = []
    original = snapshot.open_source
    monkeypatch.setattr(
        snapshot, "open_source", lambda path, **rest: read.append(path) or original(path, **rest)
    )
    assert not store.log_artifact(draft()).is_new
    assert read == [str(tmp_path / "labels")]  # of a single file no stat is kept
    (tmp_path / "train/2").write_text("other")
    read.clear()
    changed = store.log_artifact(draft())
    assert read == [str(tmp_path / "labels"), str(tmp_path / "train/2")]
    assert changed.read_bytes("train/2") == b"other"
