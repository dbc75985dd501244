"""Which process this is, on which machine and for whom, and whether another one still runs."""

from __future__ import annotations

import functools
import os
import platform
import sys

from begat.metadata import storable


def host_name() -> str:
    """The name of this machine, or of this container."""
    return storable(platform.node() or "unknown")


def user_name() -> str:
    """The name of the user this process acts as; the number where it has no name (as in many containers)."""
    if sys.platform == "win32":
        return os.environ.get("USERNAME", "unknown")
    import pwd

    number = os.geteuid()
    try:
        return storable(pwd.getpwuid(number).pw_name)
    except KeyError:
        return str(number)


@functools.cache
def current_boot() -> str:
    """An id of this boot of the machine; empty where the system has none."""
    return _read_small("/proc/sys/kernel/random/boot_id").strip()


def process_started(pid: int | None = None) -> str:
    """What tells a process (default: this one) from a later one with its number; empty where nothing does.

    `<start, in clock ticks since the boot>@<pid namespace>`: two containers on a machine may both have a process 1.
    """
    started, _ = _start_and_state("self" if pid is None else str(pid))
    return f"{started}@{_pid_namespace()}" if started else ""


def is_process_alive(host: str, pid: int, *, process_started: str, boot_id: str) -> bool | None:
    """Whether that very process still runs; None where that cannot be known (another host or container).

    False if the machine was started again since, or if another process has the number now.
    """
    if host != host_name() or pid <= 0 or sys.platform == "win32":
        return None  # on Windows os.kill(pid, 0) would end the process
    if boot_id and current_boot() and boot_id != current_boot():
        return False
    ticks, _, namespace = process_started.partition("@")
    if namespace != (_pid_namespace() if process_started else ""):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    started, state = _start_and_state(str(pid))
    if state in ("Z", "X"):  # dead, and its parent has not looked yet
        return False
    return not (ticks and started) or ticks == started


def _start_and_state(pid: str) -> tuple[str, str]:
    """Fields 22 and 3 of proc(5) stat: start in clock ticks, and state; empty where there is no such file."""
    # The second field is the program's name in parentheses, in which anything may stand.
    fields = _read_small(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[19], fields[0]) if len(fields) > 19 else ("", "")


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""


def _read_small(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


# --- distributed training ---

# A number among all processes before one among those of this machine. torchrun, Lightning; Slurm; Open MPI; MPICH.
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "LOCAL_RANK")


def rank_from_environment() -> int | None:
    """The number of this process among those of one distributed run, from 0; None if it is not in one."""
    for name in _RANKS:
        value = os.environ.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None
