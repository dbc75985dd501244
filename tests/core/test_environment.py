"""What a run remembers of where it ran, found quickly, from repositories that may be hostile too."""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from begat import environment
from begat.environment import (
    capture,
    current_boot,
    git_state,
    host_name,
    installed_packages,
    is_process_alive,
    mask_arguments,
    process_started,
    rank_from_environment,
)
from begat.metadata import check_metadata

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def git(folder: Path, *arguments: str) -> str:
    """What git prints when the test itself calls it."""
    identity = (
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.org",
        "-c",
        "protocol.file.allow=always",
    )
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, one tracked file and a remote."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("lr = 0.1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "remote", "add", "origin", "https://me:hunter2@example.org/r.git")
    return folder


# --- capture as a whole ---


def test_what_is_captured_can_be_stored() -> None:
    captured = capture()
    for part in (captured.command, captured.git, captured.environment):
        assert check_metadata(part) == part
    assert captured.pid == os.getpid()
    assert captured.host == host_name()
    assert captured.user


def test_a_capture_is_quick(repository: Path) -> None:
    (repository / "train.py").write_text("lr = 0.2\n")
    quickest = 9.0
    for _ in range(5):
        started = time.perf_counter()
        capture(cwd=repository)
        quickest = min(quickest, time.perf_counter() - started)
    assert quickest < 0.15


def test_no_value_of_an_environment_variable_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SETTING", "a value nobody should see")
    captured = capture()
    assert "nobody should see" not in json.dumps(
        [captured.command, captured.git, captured.environment]
    )


def test_the_command_of_another_program_says_nothing_of_ours(tmp_path: Path) -> None:
    command = capture(["python", "train.py", "--token=abc"], cwd=tmp_path).command
    assert command == {
        "argv": ["python", "train.py", "--token=***"],
        "cwd": str(tmp_path),
        "python": sys.executable,
    }


def test_the_command_of_a_script_names_the_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys, json; sys.path[:0] = {sys.path!r}\n"
        "from begat.environment import capture; print(json.dumps(capture().command))\n"
    )
    printed = subprocess.check_output(
        [sys.executable, "train.py", "--password", "hunter2"], cwd=tmp_path
    )
    command = json.loads(printed)
    assert command["argv"] == ["train.py", "--password", "***"]
    assert command["launched_as"] == [sys.executable, "train.py", "--password", "***"]
    assert command["script"] == str(script)
    assert command["cwd"] == str(tmp_path)
    assert command["is_notebook"] is False


def test_a_removed_working_folder_and_arguments_that_are_not_utf8_do_no_harm(
    tmp_path: Path,
) -> None:
    code = (
        f"import sys, json, os; sys.path[:0] = {sys.path!r}; os.rmdir(os.getcwd())\n"
        "from begat.environment import capture; from begat.metadata import check_metadata\n"
        "print(json.dumps(check_metadata(capture().command)))\n"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    command = json.loads(subprocess.check_output([sys.executable, "-c", code, b"a\xff"], cwd=gone))
    assert command["cwd"] is None
    assert command["argv"][1] == "a\N{REPLACEMENT CHARACTER}"


# --- secrets in arguments ---


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (["--password", "x y", "--lr", "1"], ["--password", "***", "--lr", "1"]),
        (["--token=x y=z", "a"], ["--token=***", "a"]),
        (["--api-key", "-x"], ["--api-key", "-x"]),
        (["--use-auth-token", "--lr", "1"], ["--use-auth-token", "--lr", "1"]),
        (["--client_secret=x"], ["--client_secret=***"]),
        (["AWS_SECRET_ACCESS_KEY=x", "AWS_REGION=eu"], ["AWS_SECRET_ACCESS_KEY=***", "AWS_REGION=eu"]),
        (["db.password=x", "model.lr=1"], ["db.password=***", "model.lr=1"]),
        (["--url", "https://me:x@h/?sig=y"], ["--url", "https://***@h/?sig=***"]),
        (["bash", "-c", "mysql --password x"], ["bash", "-c", "mysql --password ***"]),
        (["-H", "Authorization: Bearer x"], ["-H", "Authorization: ***"]),
        (["--pad-token", "<pad>", "--max-token=5"], ["--pad-token", "<pad>", "--max-token=5"]),
        (["-p", "8080", "--tokenizer", "bert"], ["-p", "8080", "--tokenizer", "bert"]),
        (["--password"], ["--password"]),
    ],
)  # fmt: skip
def test_secrets_in_arguments_are_masked_and_nothing_else(
    argv: list[str], masked: list[str]
) -> None:
    assert mask_arguments(argv) == masked


# --- git ---


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
    monkeypatch.setattr(environment, "MAX_DIFF_BYTES", 1000)
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
    monkeypatch.setattr(environment, "GIT_SECONDS", 0.6)
    started = time.monotonic()
    state = git_state(str(repository))
    assert time.monotonic() - started < 5
    assert "took too long" in state["problem"]
    pids = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    while any(map(is_running, pids)):  # killed, but a busy machine takes its time
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be looked at."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


# --- packages ---


def test_outside_a_repository_no_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; started = []\n"
        "sys.addaudithook(lambda event, args: started.append(args) if 'Popen' in event else None)\n"
        "from begat.environment import capture\n"
        "print(capture().environment['platform'], started)"
    )
    for name in ("GIT_DIR", "GIT_CEILING_DIRECTORIES"):
        monkeypatch.delenv(name, raising=False)
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    name, started = told.stdout.split()
    assert started == "[]"
    if sys.platform == "linux":
        # Where `uname -p` knows the processor, Python names it too.
        assert set(name.split("-")) <= set(platform.platform().split("-"))


def test_the_packages_are_those_that_python_knows() -> None:
    told = {
        environment._normalised(found.name): found.version
        for found in reversed(list(importlib.metadata.distributions()))
    }
    assert installed_packages() == told


def test_a_package_installed_meanwhile_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "brand-new" not in installed_packages()
    (tmp_path / "Brand_New-1.2.dist-info").mkdir()
    (tmp_path / "old.egg-info").mkdir()
    (tmp_path / "old.egg-info/PKG-INFO").write_text("Name: old\nVersion: 3.4\n")
    packages = installed_packages()
    assert packages["brand-new"] == "1.2"
    assert packages["old"] == "3.4"


def test_the_first_on_the_path_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytest-0.0.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_packages()["pytest"] == "0.0.1"


def test_three_hundred_packages_are_listed_in_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tmp_path / f"package_{number}-1.{number}.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    started = time.perf_counter()
    assert installed_packages()["package-299"] == "1.299"
    assert time.perf_counter() - started < 0.05


# --- the process ---


def test_this_process_is_alive() -> None:
    known = {"process_started": process_started(), "boot_id": current_boot()}
    assert is_process_alive(host_name(), os.getpid(), **known) is True


@linux_only
def test_a_process_that_ended_is_not_alive_even_before_its_parent_looked() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = {"process_started": process_started(child.pid), "boot_id": current_boot()}
    try:
        assert is_process_alive(host_name(), child.pid, **known) is True
        child.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while is_running(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_process_alive(host_name(), child.pid, **known) is False  # a zombie
    finally:
        child.communicate()
    assert is_process_alive(host_name(), child.pid, **known) is False


@linux_only
def test_another_process_with_the_same_number_is_not_the_same_process() -> None:
    started, _, namespace = process_started().partition("@")
    earlier = f"{int(started) - 1}@{namespace}"
    assert (
        is_process_alive(host_name(), os.getpid(), process_started=earlier, boot_id=current_boot())
        is False
    )


@linux_only
def test_after_another_boot_no_process_is_alive() -> None:
    known = process_started()
    assert (
        is_process_alive(host_name(), os.getpid(), process_started=known, boot_id="another")
        is False
    )


def test_of_another_host_nothing_is_known() -> None:
    assert (
        is_process_alive(
            "elsewhere", os.getpid(), process_started=process_started(), boot_id=current_boot()
        )
        is None
    )


@linux_only
def test_of_another_container_nothing_is_known() -> None:
    started = process_started().partition("@")[0]
    assert (
        is_process_alive(
            host_name(), os.getpid(), process_started=f"{started}@1", boot_id=current_boot()
        )
        is None
    )


@pytest.mark.parametrize("pid", [0, -1])
def test_a_number_that_means_a_group_of_processes_is_not_asked_for(pid: int) -> None:
    assert is_process_alive(host_name(), pid, process_started="", boot_id="") is None


@linux_only
def test_two_processes_started_apart_are_told_apart() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert process_started(child.pid)
        assert process_started(child.pid) != process_started()
    finally:
        child.communicate()
    assert process_started(child.pid) == ""


# --- ranks ---


def test_without_a_launcher_there_is_no_rank() -> None:
    assert rank_from_environment() is None


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "0"}, 0),
        ({"SLURM_PROCID": "2", "LOCAL_RANK": "0"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "4"}, 4),
        ({"RANK": "", "LOCAL_RANK": "x"}, None),
        ({"RANK": "-1"}, None),
    ],
)
def test_the_rank_is_the_launchers(
    variables: dict[str, str], rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == rank
