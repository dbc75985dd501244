"""What a run remembers of where it ran, found quickly."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from begat import environment
from begat.environment import (
    capture,
    installed_packages,
    mask_arguments,
)
from begat.metadata import check_metadata
from begat.process import host_name
from repositories import make_repository

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


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
