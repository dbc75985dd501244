"""Versions become commits: the real huggingface_hub against a Hub on loopback, with faults that really strike."""

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import begat
from begat.errors import (
    AccessDenied,
    BadInput,
    BadPath,
    BegatError,
    Refused,
    Unavailable,
    VersionNotFound,
)
from begat_huggingface import push_to_hub
from loopback_hub import READ_ONLY_TOKEN, TOKEN, LoopbackHub, Repo, use

REPO = "me/digits"
COMMIT, TAG, UPLOAD = "/commit/main", "/tag/", "/lfs/[0-9a-f]{64}$"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub.running() as running:
        yield running


@pytest.fixture(autouse=True)
def waits(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, isolated: Path) -> list[float]:
    return use(hub, monkeypatch, isolated / "huggingface")


def log(files: dict[str, bytes], name: str = "digits", **options: Any) -> begat.Version:
    draft = begat.Artifact(name, **{"type": "dataset", **options})
    for path, data in files.items():
        draft.add(data, path)
    return begat.log_artifact(draft)


def push(ref: str | begat.Version = "digits", **options: Any) -> Any:
    return push_to_hub(ref, REPO, **{"token": TOKEN, **options})


def contents(repo: Repo) -> dict[str, bytes]:
    return {path: data for path, (data, _) in repo.files.items()}


def card_of(repo: Repo) -> dict[str, Any]:
    return yaml.safe_load(contents(repo)["README.md"].decode().split("---")[1])["begat"]


WEIGHTS = b"\0weights" * 1000
FILES = {"data/a.parquet": b"\0one", "data/b.parquet": b"\0two", "notes.txt": b"n"}


# --- one version, one commit ---


def test_a_version_becomes_one_commit_with_its_tag(hub: LoopbackHub) -> None:
    version = log(FILES)
    pushed = push(version, private=True)
    repo = hub.repo(REPO)
    assert repo.private
    assert repo.tags == {"v1": repo.head}
    assert {path: contents(repo)[path] for path in FILES} == FILES
    assert len(hub.seen(f"POST .*{COMMIT}")) == 1
    assert (pushed.ref, pushed.tag, pushed.oid, pushed.is_new) == ("digits:v1", "v1", repo.head, 1)
    assert pushed.commit_url == f"{hub.url}/datasets/me/digits/commit/{repo.head}"
    assert repo.messages[repo.head] == "begat: digits:v1"


def test_the_next_version_sends_what_differs_and_deletes_what_is_gone(hub: LoopbackHub) -> None:
    log(FILES)
    push()
    hub.requests.clear()
    changed = {"data/a.parquet": b"\0one", "data/b.parquet": b"\0new", "more.txt": b"m"}
    log(changed)
    push()
    repo = hub.repo(REPO)
    ours = {"README.md", "begat.json", ".gitattributes"}
    assert {path: data for path, data in contents(repo).items() if path not in ours} == changed
    assert repo.tags["v2"] == repo.head
    assert len(hub.seen(f"PUT {UPLOAD}")) == 1
    assert len(hub.seen(f"POST .*{COMMIT}")) == 1


def test_what_begat_did_not_push_stays(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    repo.put(**{"LICENSE": "MIT", "README.md": "---\nlicense: mit  # as ever\n---\nMy digits.\n"})
    log(FILES)
    push()
    log({"only.txt": b"x"})
    push()
    assert contents(repo)["LICENSE"] == b"MIT"
    card = contents(repo)["README.md"].decode()
    assert card.startswith("---\nlicense: mit  # as ever\nbegat:\n")
    assert card.endswith("---\nMy digits.\n")
    assert card_of(repo)["version"] == "digits:v2"
    assert card.count("begat:\n") == 1


def test_pushing_again_finds_the_tag_and_changes_nothing(hub: LoopbackHub) -> None:
    log(FILES)
    first = push()
    hub.requests.clear()
    again = push()
    assert (again.oid, again.tag, again.is_new) == (first.oid, "v1", False)
    assert hub.seen("^(POST|PUT)") == []


def test_an_older_version_can_follow_a_newer_one(hub: LoopbackHub) -> None:
    for text in (b"1", b"2"):
        log({"a": text})
    assert push("digits:v2").is_new
    assert push("digits:v1").is_new
    assert contents(hub.repo(REPO))["a"] == b"1"
    assert set(hub.repo(REPO).tags) == {"v1", "v2"}


def test_a_model_goes_to_a_model_repository(hub: LoopbackHub) -> None:
    log({"model.bin": WEIGHTS}, type="model")
    pushed = push()
    assert pushed.repo_type == "model"
    assert pushed.commit_url == f"{hub.url}/me/digits/commit/{pushed.oid}"
    assert hub.repo(REPO, "model").files["model.bin"] == (WEIGHTS, True)


def test_what_was_to_be_private_does_not_become_public(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    log(FILES)
    with pytest.raises(Refused, match="is public, and digits:v1 was to be private"):
        push(private=True)
    assert (repo.tags, len(repo.commits)) == ({}, 1)
    repo.private = True
    assert push(private=True).is_new


def test_the_type_of_the_repository_can_be_chosen(hub: LoopbackHub) -> None:
    log(FILES)
    assert push(repo_type="model").repo_type == "model"
    with pytest.raises(TypeError):
        push(repo_type="space")


# --- what the repository says of it ---


def test_card_and_note_tell_metadata_and_lineage(hub: LoopbackHub) -> None:
    raw = log({"raw.txt": b"r"}, "raw")
    with begat.start_run("collect", job="collect-digits", params={"password": "p4ss"}) as run:
        run.use_artifact("raw:latest")
        version = run.log_artifact(
            "digits", b"d", type="dataset", metadata={"rows": 3, "ü": "x:\u2028"}
        )
        run.use_artifact(version)  # used after it was made: not what it came from
    push()
    repo = hub.repo(REPO)
    card = card_of(repo)
    assert card == {
        "version": "digits:v1",
        "digest": version.digest,
        "made_by": "collect-digits",
        "run": run.id,
        "used": ["raw:v1"],
        "metadata": {"rows": 3, "ü": "x:\u2028"},
    }
    note = json.loads(contents(repo)["begat.json"])
    assert note["used"] == [{"ref": "raw:v1", "digest": raw.digest}]
    assert note["metadata"] == version.metadata
    assert note["files"] == ["digits"]
    said = contents(repo)["README.md"] + contents(repo)["begat.json"]
    for private in ("p4ss", run.host, str(Path.cwd()), "argv"):
        assert private.encode() not in said


def test_long_metadata_is_in_the_note_alone(hub: LoopbackHub) -> None:
    log(FILES, metadata={"words": ["word"] * 1000})
    push()
    assert "metadata" not in card_of(hub.repo(REPO))
    assert json.loads(contents(hub.repo(REPO))["begat.json"])["metadata"]["words"]


def test_a_readme_of_the_version_is_the_card(hub: LoopbackHub) -> None:
    hub.make(REPO).put(**{"README.md": "of the web page"})
    log({**FILES, "README.md": b"Of the version.\n"})
    push()
    assert contents(hub.repo(REPO))["README.md"].endswith(b"---\nOf the version.\n")


def test_a_readme_that_is_no_text_is_refused(hub: LoopbackHub) -> None:
    log({"README.md": b"\xff\xfe"})
    with pytest.raises(BadInput, match="UTF-8"):
        push()
    assert hub.repo(REPO).tags == {}


# --- what cannot be pushed ---


@pytest.mark.parametrize("path", ["begat.json", ".cache/x", "a/.cache/b"])
def test_a_path_that_the_hub_or_begat_needs_is_refused(hub: LoopbackHub, path: str) -> None:
    log({path: b"{}"})
    with pytest.raises(BadPath):
        push()
    assert hub.seen("POST .*/commit") == []


def test_a_file_of_this_machine_is_refused_and_a_secret_address_too(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("x")
    begat.log_artifact(begat.Artifact("digits").add_remote((tmp_path / "x").as_uri()))
    with pytest.raises(BadInput, match="this machine"):
        push()
    secret = "s3://bucket/x?X-Amz-Signature=abcdef"
    draft = begat.Artifact("digits").add_remote(secret, "x", sync=False, allow_secrets=True)
    begat.log_artifact(draft)
    with pytest.raises(BadInput) as caught:
        push()
    assert "abcdef" not in str(caught.value)
    assert hub.requests == []


def test_a_tag_of_another_version_is_not_moved(hub: LoopbackHub) -> None:
    log(FILES)
    push()
    log({"other": b"o"}, "other")
    with pytest.raises(Refused, match=r"stands for digits:v1 .*not for other:v1"):
        push("other")
    repo = hub.make("me/foreign")
    repo.tags["v1"] = repo.head
    with pytest.raises(Refused, match="something else"):
        push_to_hub("other", "me/foreign", token=TOKEN)


def test_a_reference_that_does_not_exist_asks_no_hub(hub: LoopbackHub) -> None:
    log(FILES)
    with pytest.raises(VersionNotFound):
        push("digits:v7")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo_id", ["digits", "me/digits/more", "", f"https://u:{TOKEN}@huggingface.co/me/digits"]
)
def test_a_name_that_is_none_is_told_without_a_secret(repo_id: str, hub: LoopbackHub) -> None:
    log(FILES)
    with pytest.raises(BadInput) as caught:
        push_to_hub("digits", repo_id, token=TOKEN)
    assert TOKEN not in whole_text(caught.value)
    assert hub.requests == []


# --- when something goes wrong ---


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", UPLOAD),
        ("POST", "objects/batch"),
        ("POST", "/preupload/"),
        ("POST", COMMIT),
        ("POST", TAG),
        ("POST", "/repos/create"),
        ("POST", "/validate-yaml"),
        ("GET", "/datasets/me/digits$"),
        ("GET", "/revision/main"),
        ("GET", "/tree/"),
    ],
)
@pytest.mark.parametrize("what", ["cut", "cut-after", 503])
def test_what_passes_is_tried_again(
    hub: LoopbackHub, method: str, path: str, what: int | str
) -> None:
    fault = hub.fail(method, path, what, times=2)
    log({**FILES, "big.bin": b"\0" * 300_000})
    pushed = push()
    repo = hub.repo(REPO)
    assert fault.hits == 2
    assert repo.tags == {"v1": repo.head} == {"v1": pushed.oid}
    assert (
        len(repo.commits) == 2
    )  # the first, and ours: an answer that was lost makes no second one
    assert contents(repo)["big.bin"] == b"\0" * 300_000


@pytest.mark.parametrize(
    ("method", "path", "is_committed"),
    [("PUT", UPLOAD, False), ("POST", COMMIT, False), ("POST", TAG, True)],
)
@pytest.mark.parametrize("what", ["cut", 429, 503])
def test_what_does_not_pass_is_unavailable_and_nothing_is_tagged(
    hub: LoopbackHub, method: str, path: str, is_committed: bool, what: int | str
) -> None:
    fault = hub.fail(method, path, what, times=1_000)
    log(FILES)
    with pytest.raises(Unavailable, match="try again") as caught:
        push()
    assert type(caught.value) is Unavailable
    repo = hub.repo(REPO)
    assert 2 < fault.hits < 100
    assert repo.tags == {}
    assert len(repo.commits) == 1 + is_committed
    hub.faults.clear()
    assert push().is_new
    assert repo.tags == {"v1": repo.head}
    assert len(repo.commits) == 2


def test_a_hub_that_asks_for_time_gets_it(hub: LoopbackHub, waits: list[float]) -> None:
    fault = hub.fail("POST", TAG, 429, headers={"Retry-After": "17"})
    log(FILES)
    push()
    assert fault.hits == 1
    assert waits == [17.0]


def test_a_hub_that_asks_for_too_much_time_does_not(hub: LoopbackHub, waits: list[float]) -> None:
    fault = hub.fail("POST", TAG, 429, times=9, headers={"Retry-After": "3600"})
    log(FILES)
    with pytest.raises(Unavailable, match="429"):
        push()
    assert (fault.hits, waits) == (1, [])


@pytest.mark.parametrize("status", [409, 412])
def test_a_lost_race_is_run_again_on_what_is_there_now(hub: LoopbackHub, status: int) -> None:
    repo = hub.make(REPO)
    fault = hub.fail("POST", COMMIT, status, times=2, do=lambda: repo.put(**{"theirs.txt": "t"}))
    log(FILES)
    push()
    assert fault.hits == 2
    assert contents(repo)["theirs.txt"] == b"t"
    assert repo.tags == {"v1": repo.head}


def test_the_parent_of_a_commit_is_a_lock(hub: LoopbackHub) -> None:
    """Without `parent_commit` the Hub would take this commit, and nobody would know of the other."""
    repo = hub.make(REPO)
    moved = hub.fail("POST", "/preupload/", 0, do=lambda: repo.put(**{"theirs.txt": "t"}))
    log(FILES)
    push()
    assert moved.hits == 1
    assert len(hub.seen(f"POST .*{COMMIT}")) == 2
    assert contents(repo)["theirs.txt"] == b"t"


def test_a_race_that_is_always_lost_is_refused(hub: LoopbackHub, waits: list[float]) -> None:
    repo = hub.make(REPO)
    fault = hub.fail("POST", COMMIT, 412, times=1_000)
    log(FILES)
    with pytest.raises(Refused, match="changed by others 5 times"):
        push()
    assert fault.hits == 5
    assert waits == [1, 2, 4, 8]
    assert (repo.tags, len(repo.commits)) == ({}, 1)


def test_two_who_push_the_same_version_end_with_one_tag(hub: LoopbackHub) -> None:
    log(FILES)
    fault = hub.fail("POST", TAG, "cut-after")
    pushed = push()
    assert fault.hits == 1
    assert (pushed.is_new, hub.repo(REPO).tags["v1"]) == (False, pushed.oid)


def test_a_file_that_the_hub_leaves_out_keeps_the_tag_away(hub: LoopbackHub) -> None:
    repo = hub.make(REPO)
    repo.put(**{".gitignore": "*.txt"})
    log(FILES)
    with pytest.raises(Refused, match=r"notes\.txt.*\.gitignore"):
        push()
    assert repo.tags == {}


def test_offline_is_said_at_once(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    log(FILES)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        push()
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    log(FILES)
    with pytest.raises(Unavailable):
        push()
    assert len(waits) == 3


@pytest.mark.parametrize("token", [READ_ONLY_TOKEN, "hf_nobodyKnowsThisOne", False])
def test_who_may_not_write_is_denied(hub: LoopbackHub, token: str | bool) -> None:
    repo = hub.make(REPO)
    log(FILES)
    with pytest.raises(AccessDenied) as caught:
        push(token=token)
    assert str(token) not in str(caught.value)
    assert (repo.tags, len(repo.commits)) == ({}, 1)


def test_a_gated_repository_says_what_to_do(hub: LoopbackHub) -> None:
    hub.make(REPO, gated=True)
    log(FILES)
    with pytest.raises(AccessDenied, match="gated: ask for access"):
        push(token=READ_ONLY_TOKEN)


# --- secrets ---


def whole_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", UPLOAD),
        ("POST", COMMIT),
        ("POST", TAG),
        ("POST", "/repos/create"),
        ("GET", "/datasets/me/digits$"),
    ],
)
@pytest.mark.parametrize("what", [400, 401, 403, 404, 409, 429, "cut"])
def test_no_failure_tells_the_token(
    hub: LoopbackHub,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    what: int | str,
) -> None:
    echo = {"X-Error-Message": f"bad token {TOKEN} at https://u:{TOKEN}@hub/x?token={TOKEN}"}
    fault = hub.fail(method, path, what, times=1_000, headers=echo, body=f"<html>{TOKEN}</html>")
    version = log(FILES)
    with caplog.at_level(logging.DEBUG), pytest.raises(BegatError) as caught:
        push()
    assert fault.hits > 0
    text = whole_text(caught.value)
    assert TOKEN not in text
    assert "signedSecret42" not in text
    assert TOKEN not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("begat")
    )
    assert TOKEN not in json.dumps(version.metadata)


def test_a_token_of_the_environment_is_not_told_either(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secretWithoutPrefix99")
    hub.make(REPO)
    log(FILES)
    with pytest.raises(AccessDenied) as caught:
        push_to_hub("digits", REPO)
    assert "secretWithoutPrefix99" not in whole_text(caught.value)


def test_a_login_in_the_address_of_the_hub_is_not_told(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make(REPO)
    address = hub.url.replace("//", "//user:passw0rd@")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    log(FILES)
    try:
        said = repr(push())
    except BegatError as error:  # huggingface_hub 1.3 cannot read its own answer then
        said = whole_text(error)
    assert "passw0rd" not in said
    hub.fail("GET", "/tree/", 500, times=1_000)
    log({"b": b"b"})
    with pytest.raises(Unavailable) as caught:
        push()
    assert "passw0rd" not in whole_text(caught.value)


# --- memory ---

PUSH_A_LARGE_FILE = f"""
import sys
import tracemalloc
import begat
from begat_huggingface import push_to_hub

version = begat.log_artifact(begat.Artifact("digits").add(sys.argv[1]))
tracemalloc.start()
push_to_hub(version, {REPO!r})
print(tracemalloc.get_traced_memory()[1] >> 20)
"""


def test_files_are_streamed(hub: LoopbackHub, tmp_path: Path) -> None:
    size = 192 << 20
    beginning = b"no zero, as of a text" * 50_000
    with open(tmp_path / "big.bin", "wb") as file:
        file.write(beginning)
        file.truncate(size)
    paths = os.pathsep.join(path for path in sys.path if path)
    places = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "PYTHONPATH": paths}
    # Without Xet it is Python that sends the file. All that Python holds is counted, and nothing else: how much of its
    # libraries a process has in memory depends on what else the machine does.
    switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PUSH_A_LARGE_FILE, str(tmp_path / "big.bin")],
        capture_output=True,
        text=True,
        env={**os.environ, **places, **switches},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pushed = hub.repo(REPO).files["big.bin"][0]
    assert len(pushed) == size
    assert pushed.startswith(beginning)
    assert int(done.stdout.split()[-1]) < 64  # MiB
