"""Commits become versions: pinned, checked, and the same commit always the same version; from a Hub on loopback."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import begat
from begat.errors import (
    AccessDenied,
    BadInput,
    BadName,
    BadPath,
    BegatError,
    DigestMismatch,
    FormatTooNew,
    NotFound,
    Unavailable,
)
from begat_huggingface import load_dataset, pull_from_hub, push_to_hub, save_dataset
from loopback_hub import READ_ONLY_TOKEN, TOKEN, LoopbackHub, use

REPO = "me/digits"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub.running() as running:
        yield running


@pytest.fixture(autouse=True)
def waits(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path) -> list[float]:
    return use(hub, monkeypatch, isolated / "huggingface")


def pull(**options: Any) -> begat.Version:
    return pull_from_hub(REPO, **{"token": TOKEN, **options})


def contents(version: begat.Version) -> dict[str, bytes]:
    return {entry.path: version.read_bytes(entry.path) for entry in version.files()}


def elsewhere(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    """From here on, another store, as someone else has it."""
    monkeypatch.setenv("BEGAT_STORE", str(isolated / "another-store"))


def pushed(files: dict[str, bytes], **options: Any) -> begat.Version:
    draft = begat.Artifact("digits", "dataset", **options)
    for path, data in files.items():
        draft.add(data, path)
    version = begat.log_artifact(draft)
    push_to_hub(version, REPO, token=TOKEN)
    return version


# --- any repository ---


def test_a_commit_becomes_a_version_that_knows_it(hub: LoopbackHub) -> None:
    commit = hub.make(REPO).put(**{"data/a.csv": "1,2\n", "README.md": "Digits.\n"})
    version = pull()
    assert (version.ref, version.type, version.is_new) == ("digits:v1", "dataset", True)
    assert contents(version) == {"data/a.csv": b"1,2\n", "README.md": b"Digits.\n"}
    assert version.metadata == {
        "huggingface": {"repo_id": REPO, "repo_type": "dataset", "commit": commit}
    }


def test_the_same_commit_is_the_same_version_and_is_not_downloaded_again(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    first = repo.put(a="1")
    version = pull()
    repo.put(a="2")
    newer = pull()
    assert (newer.ref, contents(newer)) == ("digits:v2", {"a": b"2"})
    hub.requests.clear()
    again = pull(revision=first)
    assert (again, again.is_new) == (version, False)
    assert hub.seen("/resolve/") == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    old = repo.put(a="1")
    repo.put(a="2")
    repo.tags["v1.0"] = repo.branches["old"] = old
    versions = {pull(revision=one) for one in ("v1.0", "old", old)}
    assert [contents(one) for one in versions] == [{"a": b"1"}]
    assert contents(pull(revision="main")) == {"a": b"2"}


def test_a_model_comes_from_a_model_repository(hub: LoopbackHub) -> None:
    hub.make("org/net", "model").put(**{"model.bin": b"\0w"})
    version = pull_from_hub("org/net", repo_type="model", name="vision/net", token=TOKEN)
    assert (version.ref, version.type) == ("vision/net:v1", "model")


def test_a_name_that_begat_cannot_take_is_refused_before_anything_is_stored(
    hub: LoopbackHub,
) -> None:
    hub.make("me/_odd").put(a="1")
    with pytest.raises(BadName):
        pull_from_hub("me/_odd", token=TOKEN)
    assert pull_from_hub("me/_odd", name="odd", token=TOKEN).ref == "odd:v1"


def test_a_pull_within_a_run_is_its_output_and_later_its_input(hub: LoopbackHub) -> None:
    hub.make(REPO).put(a="1")
    with begat.start_run("import") as first:
        version = pull()
    with begat.start_run("train") as second:
        assert pull() == version
    assert (first.outputs, first.inputs) == ((version,), ())
    assert (second.outputs, second.inputs) == ((), (version,))


def test_a_begat_json_of_someone_else_is_a_file_like_any_other(hub: LoopbackHub) -> None:
    hub.make(REPO).put(**{"begat.json": '{"name": "Begat, a band"}'})
    assert contents(pull()) == {"begat.json": b'{"name": "Begat, a band"}'}


# --- what begat pushed ---

READMES = {
    "none": None,
    "plain": "Digits.\n",
    "no newline": "Digits.",
    "empty": "",
    "front matter": "---\nlicense: mit  # yes\n---\n\nDigits.\n",
    "front matter alone": "---\nlicense: mit\n---",
    "empty front matter": "---\n---\nDigits.\n",
    "windows": "---\r\nlicense: mit\r\n---\r\nDigits.\r\n",
    "a block of ours": '---\nlicense: mit\nbegat:\n  version: "digits:v0"\n---\nDigits.\n',
    "only a block of ours": '---\nbegat:\n  version: "digits:v0"\n---\nDigits.\n',
    "a rule, no front matter": "Digits.\n\n---\n\nbegat: yes\n",
    "a list": "---\ntags:\n- a\n- b\n---\n",
}


@pytest.mark.parametrize("readme", READMES.values(), ids=list(READMES))
def test_a_version_comes_back_as_it_was(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path, readme: str | None
) -> None:
    files = {"data/a.parquet": b"\0one", "n.txt": b"n", ".gitattributes": b"*.bin binary\n"}
    if readme is not None:
        files["README.md"] = readme.encode()
    there = pushed(files, metadata={"rows": 3})
    elsewhere(monkeypatch, isolated)
    here = pull()
    assert (here.ref, here.type, here.is_new) == ("digits:v1", "dataset", True)
    assert here.digest == there.digest
    assert contents(here) == files
    origin = here.metadata["huggingface"]
    assert here.metadata == {"rows": 3, "huggingface": origin}
    assert origin["version"] == "digits:v1"
    assert origin["commit"] == hub.repo(REPO).tags["v1"]
    assert pull().is_new is False


def test_what_the_hub_cannot_hold_comes_back_too(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run.sh")
    draft = begat.Artifact("digits", "dataset", metadata={"rows": 3}).add(tmp_path)
    draft.add(b"x", "noted.txt", metadata={"source": "camera 3"})
    draft.keep([begat.RemoteAsset("big.bin", "s3://bucket/big.bin", 7, "etag:abc")])
    there = begat.log_artifact(draft)
    push_to_hub(there, REPO, token=TOKEN)
    files = hub.repo(REPO).files
    assert {"run.sh", "noted.txt"} < set(files)
    assert not {"link", "empty/folder", "big.bin"} & set(files)
    elsewhere(monkeypatch, isolated)
    here = pull()
    assert here.digest == there.digest
    assert here.entries == there.entries
    assert {entry.path: entry.metadata for entry in here.entries if entry.metadata} == {
        "noted.txt": {"source": "camera 3"}
    }


def test_the_lineage_of_the_other_store_is_told(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    raw = begat.log_artifact("raw", b"r")
    with begat.start_run("collect", job="collect-digits", uses=["raw:latest"]) as run:
        pushed({"a": b"1"})
    elsewhere(monkeypatch, isolated)
    origin = pull().metadata["huggingface"]
    assert origin["used"] == [{"ref": "raw:v1", "digest": raw.digest}]
    assert (origin["made_by"]["run"], origin["made_by"]["job"]) == (run.id, "collect-digits")


def test_into_the_store_that_it_came_from_it_is_the_version_itself(hub: LoopbackHub) -> None:
    version = pushed({"a": b"1", "b": b"2"})
    again = pull()
    assert (again, again.is_new) == (version, False)
    assert hub.seen("GET .*/resolve/.*/a$") == []


def test_a_commit_that_was_changed_by_hand_is_not_what_was_pushed(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    version = pushed({"a": b"1", "b": b"2"})
    hub.repo(REPO).put(a="changed")
    with pytest.raises(DigestMismatch, match="changed after begat pushed it"):
        pull()
    elsewhere(monkeypatch, isolated)
    with pytest.raises(DigestMismatch, match=r"revision='v1'"):
        pull()
    assert begat.open_store().artifacts() == []
    assert pull(revision="v1").digest == version.digest
    edited = pull(allow_edited=True)
    assert contents(edited)["a"] == b"changed"
    assert set(edited.metadata) == {"huggingface"}
    assert "begat.json" not in contents(edited)


@pytest.mark.parametrize("what", [{"a": None}, {"more": "m"}, {"README.md": "A better card.\n"}])
def test_a_file_that_is_gone_is_noticed_and_what_others_added_is_left_out(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path, what: dict[str, str | None]
) -> None:
    version = pushed({"a": b"1", "b": b"2"})
    hub.repo(REPO).put(**what)
    elsewhere(monkeypatch, isolated)
    if "a" in what:
        with pytest.raises(DigestMismatch):
            pull()
    else:
        assert pull().digest == version.digest


def test_a_dataset_comes_back_as_a_dataset(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    splits = {"train": Dataset.from_dict({"x": [1, 2]}), "test": Dataset.from_dict({"x": [3]})}
    push_to_hub(save_dataset(DatasetDict({**splits}), "numbers"), "me/numbers", token=TOKEN)
    elsewhere(monkeypatch, isolated)
    back = load_dataset(pull_from_hub("me/numbers", token=TOKEN))
    assert list(back) == ["train", "test"]
    assert back["train"][:] == {"x": [1, 2]}


# --- a begat.json that is not to be believed ---


def rewrite(hub: LoopbackHub, **changes: Any) -> None:
    files = hub.repo(REPO).files
    note = {**json.loads(files["begat.json"][0]), **changes}
    hub.repo(REPO).put(**{"begat.json": json.dumps(note)})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"begat": 2}, FormatTooNew),
        ({"files": "a"}, BadInput),
        ({"surprise": 1}, BadInput),
        ({"digest": "b3:00"}, DigestMismatch),
        ({"executables": ["a"]}, DigestMismatch),
        ({"symlinks": {"../out": "a"}}, BadPath),
        ({"symlinks": {"link": "../../etc/passwd"}}, BadPath),
        ({"symlinks": {"a": "b"}}, BadPath),
        ({"empty_directories": ["/etc"]}, BadPath),
        ({"remote": {"x": {"uri": "https://u:p4ss@host/x"}}}, BadInput),
        ({"name": "../digits"}, BadName),
    ],
)
def test_a_note_that_is_wrong_makes_no_version(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    isolated: Path,
    changes: dict[str, Any],
    error: type[BegatError],
) -> None:
    pushed({"a": b"1"})
    rewrite(hub, **changes)
    elsewhere(monkeypatch, isolated)
    with pytest.raises(error) as caught:
        pull()
    assert "p4ss" not in str(caught.value)
    assert begat.open_store().artifacts() == []


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../b", "a\\b"])
def test_a_path_that_leads_out_is_refused_before_a_download(hub: LoopbackHub, path: str) -> None:
    hub.make(REPO).put(**{path: "x"})
    with pytest.raises(BadPath):
        pull()
    assert hub.seen("/resolve/") == []


# --- when something goes wrong ---


@pytest.mark.parametrize("what", ["cut", "cut-answer", 429, 503])
@pytest.mark.parametrize("path", ["/revision/main", "/tree/", "/resolve/.*/big.bin"])
def test_what_passes_is_tried_again(hub: LoopbackHub, path: str, what: int | str) -> None:
    fault = hub.fail("GET", path, what, times=2)
    hub.make(REPO).put(**{"big.bin": b"\0" * 300_000, "small": "s"})
    version = pull()
    assert fault.hits == 2
    assert contents(version) == {"big.bin": b"\0" * 300_000, "small": b"s"}


@pytest.mark.parametrize("what", ["cut", 429, 503])
@pytest.mark.parametrize("path", ["/tree/", "/resolve/.*/big.bin"])
def test_what_does_not_pass_makes_no_version(hub: LoopbackHub, path: str, what: int | str) -> None:
    fault = hub.fail("GET", path, what, times=1_000)
    hub.make(REPO).put(**{"big.bin": b"\0" * 300_000})
    with pytest.raises(Unavailable, match="try again"):
        pull()
    assert 2 < fault.hits < 100
    assert begat.open_store().artifacts() == []


def test_bytes_that_changed_in_the_cache_are_not_taken(hub: LoopbackHub, isolated: Path) -> None:
    hub.make(REPO).put(a="right")
    pull(name="first")
    blobs = [one for one in (isolated / "huggingface").rglob("blobs/*") if one.is_file()]
    [blob] = [one for one in blobs if one.read_bytes() == b"right"]
    blob.chmod(0o644)
    blob.write_bytes(b"wrong")
    with pytest.raises(DigestMismatch, match="Remove it from the cache"):
        pull(name="second")
    assert [one.name for one in begat.open_store().artifacts()] == ["first"]


def test_a_disk_that_is_full_is_said_to_be_so(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make(REPO).put(a="1")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(Unavailable, match="no space is left"):
        pull()
    assert begat.open_store().artifacts() == []


def test_downloads_go_where_they_are_sent(hub: LoopbackHub, isolated: Path, tmp_path: Path) -> None:
    hub.make(REPO).put(a="1")
    pull(cache_dir=tmp_path / "here")
    assert any((tmp_path / "here").rglob("a"))
    assert not (isolated / "huggingface").exists()
    shutil.rmtree(tmp_path / "here")
    assert contents(begat.get_artifact("digits")) == {"a": b"1"}


def test_a_repository_that_is_not_there_is_said_to_be_so(hub: LoopbackHub) -> None:
    with pytest.raises(NotFound, match="does not exist, or your token cannot see it"):
        pull()
    hub.make("me/net", "model")
    with pytest.raises(NotFound, match="There is a model of this name: repo_type='model'"):
        pull_from_hub("me/net", token=TOKEN)


def test_a_revision_that_is_not_there_names_those_that_are(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    repo.tags["v1"] = repo.head
    with pytest.raises(NotFound, match=r"no revision 'v9'; it has main, v1\."):
        pull(revision="v9")


def test_who_may_not_read_is_denied(hub: LoopbackHub) -> None:
    hub.make(REPO, private=True)
    with pytest.raises(AccessDenied):
        pull(token=False)
    with pytest.raises(AccessDenied) as caught:
        pull(token="hf_nobodyKnowsThisOne")
    assert "nobodyKnows" not in str(caught.value)
    hub.make("me/gated", gated=True)
    with pytest.raises(AccessDenied, match="gated"):
        pull_from_hub("me/gated", token=READ_ONLY_TOKEN)


def test_offline_is_said_at_once(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        pull()
    assert hub.requests == []


@pytest.mark.parametrize("what", [401, 403, 404, 422, 500, "cut"])
@pytest.mark.parametrize("path", ["/revision/main", "/tree/", "/resolve/"])
def test_no_failure_tells_the_token(hub: LoopbackHub, path: str, what: int | str) -> None:
    echo = {"X-Error-Message": f"bad token {TOKEN} at https://u:{TOKEN}@hub/x?token={TOKEN}"}
    fault = hub.fail("GET", path, what, times=1_000, headers=echo)
    hub.make(REPO).put(a="1")
    with pytest.raises(BegatError) as caught:
        pull()
    assert fault.hits > 0
    error = caught.value
    assert TOKEN not in f"{error!s} {error!r} {error.__context__!r} {error.__cause__!r}"
