"""Which process this is, and whether another one still runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from begat.process import (
    current_boot,
    host_name,
    is_process_alive,
    process_started,
    rank_from_environment,
)
from processes import is_running

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


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
