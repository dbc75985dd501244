"""What a run remembers of its repository, which may be hostile too."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from begat.git import git_state
from processes import is_running
from repositories import git, make_repository

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def test_a_clean_repository_is_its_commit(repository: Path) -> None:
    deep = repository / "a/b"
    deep.mkdir(parents=True)
    (repository / "untracked").touch()
    assert git_state(str(deep)) == {
        "root": str(repository),
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "remote": "https://example.org/r.git",
        "is_dirty": False,
        "diff": None,
        "diff_is_truncated": False,
    }


def test_what_is_not_committed_can_be_applied_again(repository: Path) -> None:
    (repository / "train.py").write_text("lr = 0.2  # größer\n")
    (repository / "new.py").write_text("x\n")
    git(repository, "add", "new.py")
    git(repository, "config", "diff.noprefix", "true")
    git(repository, "config", "color.ui", "always")
    state = git_state(str(repository))
    assert state["is_dirty"] is True
    other = repository.parent / "other"
    git(repository.parent, "clone", "-q", str(repository), str(other))
    subprocess.run(["git", "apply"], cwd=other, input=state["diff"].encode(), check=True)
    assert (other / "train.py").read_text() == "lr = 0.2  # größer\n"
    assert (other / "new.py").read_text() == "x\n"


def test_a_binary_file_is_named_and_not_copied(repository: Path) -> None:
    (repository / "blob").write_bytes(b"\0" * 100)
    git(repository, "add", "blob")
    diff = git_state(str(repository))["diff"]
    assert "Binary files" in diff
    assert len(diff) < 500


def test_a_long_diff_is_cut_at_the_end_of_a_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("begat.git.MAX_DIFF_BYTES", 1000)
    (repository / "train.py").write_text("a line of text\n" * 1000)
    state = git_state(str(repository))
    assert state["diff_is_truncated"] is True
    assert 900 < len(state["diff"]) <= 1000
    assert state["diff"].endswith("a line of text\n")


def test_files_that_hold_secrets_are_left_out_of_the_diff(repository: Path) -> None:
    for name in (".env", "deploy.pem"):
        (repository / name).write_text("hunter2")
    git(repository, "add", "-f", ".")
    (repository / "train.py").write_text("lr = 0.3\n")
    diff = git_state(str(repository))["diff"]
    assert "hunter2" not in diff
    assert "lr = 0.3" in diff


def test_a_repository_without_a_commit_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    state = git_state(str(tmp_path))
    assert state["commit"] is None
    assert state["branch"] == "main"


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    assert git_state(str(repository))["branch"] is None


def test_a_worktree_is_a_repository_too(repository: Path) -> None:
    git(repository, "worktree", "add", "-q", "-b", "side", str(repository.parent / "side"))
    state = git_state(str(repository.parent / "side"))
    assert state["branch"] == "side"
    assert state["root"] == str(repository.parent / "side")


def test_outside_a_repository_and_without_git_there_is_nothing(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(str(tmp_path)) == {}
    monkeypatch.setenv("PATH", "")
    assert git_state(str(repository)) == {}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
def test_a_repository_that_git_does_not_trust_is_a_problem_with_a_name(repository: Path) -> None:
    os.chown(repository, 12345, 12345)
    os.chown(repository / ".git", 12345, 12345)
    state = git_state(str(repository))
    assert state["commit"] is None
    assert "git status" in state["problem"]


def test_a_git_that_hangs_is_killed_with_what_it_started(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin/git"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\nsleep 60 & echo $! >> {tmp_path}/children\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("begat.git.GIT_SECONDS", 0.6)
    started = time.monotonic()
    state = git_state(str(repository))
    assert time.monotonic() - started < 5
    assert "took too long" in state["problem"]
    pids = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    while any(map(is_running, pids)):  # killed, but a busy machine takes its time
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def hostile(repository: Path, witness: Path) -> None:
    """A configuration in which everything that git may run by itself writes a file."""
    program = repository.parent / "evil.sh"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {witness}\ncat\n')
    program.chmod(0o755)
    for name in ("pre-commit", "post-index-change", "fsmonitor-watchman", "reference-transaction"):
        hook = repository / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(program.read_text())
        hook.chmod(0o755)
    settings = {
        "core.fsmonitor": str(program),
        "core.pager": str(program),
        "core.sshCommand": str(program),
        "core.askPass": str(program),
        "core.editor": str(program),
        "core.alternateRefsCommand": str(program),
        "credential.helper": str(program),
        "diff.external": str(program),
        "diff.evil.command": str(program),
        "diff.evil.textconv": str(program),
        "filter.evil.clean": str(program),
        "filter.evil.smudge": str(program),
        "filter.evil.required": "true",
        "gpg.program": str(program),
        "pager.status": "true",
        "alias.status": f"!{program}",
        "submodule.recurse": "true",
        "diff.submodule": "diff",
    }
    for key, value in settings.items():
        git(repository, "config", key, value)
    (repository / ".git/info/attributes").write_text("* filter=evil diff=evil\n")


def test_nothing_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    hostile(repository, witness)
    (repository / "train.py").write_text("lr = 0.4\n")
    state = git_state(str(repository))
    assert not witness.exists()
    assert "+lr = 0.4" in state["diff"]


def test_the_hostile_repository_is_hostile(repository: Path, tmp_path: Path) -> None:
    # Without this, the test above would pass with a repository that is as tame as any.
    hostile(repository, tmp_path / "witness")
    (repository / "train.py").write_text("lr = 0.5\n")
    git(repository, "diff", "HEAD")
    assert (tmp_path / "witness").exists()


def test_a_filter_whose_name_cannot_be_said_keeps_git_from_looking(
    repository: Path, tmp_path: Path
) -> None:
    with (repository / ".git/config").open("a") as config:
        config.write(f'[filter "a=b"]\n clean = touch {tmp_path}/witness\n')
    (repository / ".git/info/attributes").write_text("* filter=a=b\n")
    (repository / "train.py").write_text("lr = 0.6\n")
    state = git_state(str(repository))
    assert state["commit"] == git(repository, "rev-parse", "HEAD")
    assert state["is_dirty"] is None
    assert not (tmp_path / "witness").exists()


def test_a_submodule_is_not_entered(repository: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    git(tmp_path, "clone", "-q", str(repository), str(inner))
    git(repository, "submodule", "add", "-q", str(inner), "inner")
    git(repository, "commit", "-q", "-m", "submodule")
    witness = tmp_path / "witness"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {witness}\n")
    evil.chmod(0o755)
    git(repository / "inner", "config", "core.fsmonitor", str(evil))
    witness.unlink(missing_ok=True)
    (repository / "inner/train.py").write_text("lr = 0.7\n")
    assert git_state(str(repository))["is_dirty"] is False
    assert not witness.exists()


def test_the_index_is_not_written(repository: Path) -> None:
    index = repository / ".git/index"
    os.utime(repository / "train.py")
    before = index.read_bytes(), index.stat().st_mtime_ns
    git_state(str(repository))
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before
