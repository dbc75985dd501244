"""What a run remembers of where it ran: command, code, packages, machine and process. Never values of variables.

Everything here is found without the network, in bounded time, and never fails: what cannot be known is left out.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from begat.config import MASK, is_secret_name, without_secrets
from begat.git import git_state
from begat.metadata import storable
from begat.model import Json
from begat.process import current_boot, host_name, process_started, user_name


class Captured(msgspec.Struct, frozen=True):
    """What `capture` found; its names are those of `RunRecord`.

    `command`: argv, launched_as, cwd, python, script, module, is_notebook.
    `git`: root, commit, branch, remote, is_dirty, diff, diff_is_truncated; `problem` where git could not tell; empty
    outside a repository and without git.
    `environment`: python, implementation, platform, machine, cpu_count, packages {name: version}.
    """

    command: Mapping[str, Json]
    git: Mapping[str, Json]
    environment: Mapping[str, Json]
    host: str
    pid: int
    process_started: str
    boot_id: str
    user: str


def capture(argv: Sequence[str] | None = None, cwd: Path | None = None) -> Captured:
    """What is known of this process now; `argv` and `cwd` (default: its own) are those of the program that runs."""
    folder = _working_folder() if cwd is None else os.path.abspath(cwd)
    return Captured(
        command=_command(argv, folder),
        git={} if folder is None else git_state(folder),
        environment=_environment(),
        host=host_name(),
        pid=os.getpid(),
        process_started=process_started(),
        boot_id=current_boot(),
        user=user_name(),
    )


# --- the command ---


def _command(argv: Sequence[str] | None, folder: str | None) -> dict[str, Json]:
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)  # "<stdin>" where the program is piped in
    spec = getattr(main, "__spec__", None)
    command: dict[str, Json] = {
        "argv": mask_arguments(sys.argv if argv is None else argv),
        "cwd": None if folder is None else storable(folder),
        "python": storable(sys.executable or ""),
    }
    if argv is None:  # else another program runs, and these would be begat's own
        command |= {
            "launched_as": mask_arguments(sys.orig_argv),
            "script": storable(os.path.abspath(script))
            if script and os.path.exists(script)
            else None,
            "module": getattr(spec, "name", None),
            "is_notebook": "ipykernel" in sys.modules and script is None,
        }
    return command


_NAME = re.compile(r"-{0,2}[A-Za-z_][\w.-]*\Z")


def mask_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments with `***` in place of secrets: `--password X`, `--token=X`, `AWS_SECRET_ACCESS_KEY=X`, URLs.

    Names decide, and well-known shapes; a secret under a harmless name (`-p X`) is not noticed.
    """
    masked: list[str] = []
    is_value_of_secret = False
    for argument in argv:
        text = storable(argument)
        if is_value_of_secret and not text.startswith("-"):
            masked.append(MASK)
            is_value_of_secret = False
            continue
        name, equals, _ = text.partition("=")
        is_value_of_secret = not equals and text.startswith("-") and is_secret_name(name)
        if equals and _NAME.match(name) and is_secret_name(name):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(without_secrets(text))
    return masked


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


# --- Python and its packages ---


def _environment() -> dict[str, Json]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": _platform_name(),
        "machine": platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": installed_packages(),
    }


def _platform_name() -> str:
    """`Linux-6.1.0-x86_64-with-glibc2.36`, as `platform.platform()` says it, which starts `uname -p` for that."""
    if sys.platform != "linux":
        return platform.platform()
    system, libc = os.uname(), "".join(platform.libc_ver())
    parts = [system.sysname, system.release, system.machine, *(["with", libc] if libc else [])]
    return storable("-".join(parts))


def installed_packages() -> dict[str, str]:
    """The distributions that this process would import, {name: version}, names as PEP 503 writes them.

    Names and versions are taken from the names of the `.dist-info` folders: 80 packages in 0.3 ms, where
    importlib.metadata reads 80 files in 30.
    """
    packages: dict[str, str] = {}
    for folder in sys.path:
        try:
            folder = os.path.abspath(folder)
            changed_ns = os.stat(folder).st_mtime_ns
        except OSError:
            continue
        for name, version in _packages_in(folder, changed_ns):
            packages.setdefault(name, version)  # the first on the path is the one that is imported
    return dict(sorted(packages.items()))


_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[^-]+)(?:-py[0-9.]+)?\.(?:dist|egg)-info\Z"
)


@functools.lru_cache(maxsize=256)
def _packages_in(folder: str, changed_ns: int) -> tuple[tuple[str, str], ...]:
    """The packages in one folder of the path; `changed_ns` is there so that the cache notices a new one."""
    try:
        names = os.listdir(folder)
    except OSError:  # a zip archive, or not ours to read
        return ()
    found: list[tuple[str, str]] = []
    for name in names:
        if not name.endswith((".dist-info", ".egg-info")):
            continue
        parts = _PACKAGE.match(name)
        if parts:
            found.append((_normalised(parts["name"]), storable(parts["version"])))
        elif name.endswith(".egg-info"):  # a development install: no version in its name
            found.append((_normalised(name.removesuffix(".egg-info")), _egg_version(folder, name)))
    return tuple(found)


def _normalised(name: str) -> str:
    return storable(re.sub(r"[-_.]+", "-", name).lower())


def _egg_version(folder: str, name: str) -> str:
    try:
        with open(
            os.path.join(folder, name, "PKG-INFO"), encoding="ascii", errors="replace"
        ) as file:
            head = file.read(4096)
    except OSError:
        return ""
    found = re.search(r"^Version: *(\S+)", head, re.MULTILINE)
    return found[1] if found else ""
