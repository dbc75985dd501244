"""What a run remembers of where it ran: command, code, packages, machine and process. Never values of variables.

Everything here is found without the network, in bounded time, and never fails: what cannot be known is left out.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from begat.config import MASK, is_secret_name, without_secrets
from begat.model import Json

MAX_DIFF_BYTES = 10 * 1024 * 1024
GIT_SECONDS = 5.0


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
        "cwd": None if folder is None else _text(folder),
        "python": _text(sys.executable or ""),
    }
    if argv is None:  # else another program runs, and these would be begat's own
        command |= {
            "launched_as": mask_arguments(sys.orig_argv),
            "script": _text(os.path.abspath(script)) if script and os.path.exists(script) else None,
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
        text = _text(argument)
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


def _text(value: str) -> str:
    """Text that can be stored; arguments and paths that are not UTF-8 lose what is not."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "")


# --- git ---

# A repository may come from anywhere with its configuration: nothing that is named in it is run.
_GIT = (
    *("git", "--no-pager", "--no-optional-locks"),
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.bareRepository=explicit"),
)  # fmt: skip
_DIFF = (
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/", "-U3"),
    *("--submodule=short", "--ignore-submodules=dirty", "-O/dev/null", "HEAD", "--", ":/"),
    # Kept out of the repository by most, and by those who do not, out of the store at least.
    *(f":(top,exclude,glob)**/{name}" for name in (".env", ".env.*", "*.pem", "*.key", ".netrc", ".pypirc")),
)  # fmt: skip


def git_state(folder: str) -> dict[str, Json]:
    """What git says of the repository around a folder; empty if there is none, or no git.

    `is_dirty` and `diff` are about tracked files (None: not known, none). The diff is text of at most 10 MiB, cut at
    the end of a line; changes of binary files are named only, those of `.env` and key files are left out. Takes at most
    about `GIT_SECONDS`.
    """
    root = _repository_root(folder)
    if root is None and "GIT_DIR" not in os.environ:
        return {}
    deadline = time.monotonic() + GIT_SECONDS
    listed = _git(folder, ("config", "--list", "-z", "--show-scope"), deadline=deadline)
    if listed.code is None:
        return {}
    state: dict[str, Json] = {"root": None if root is None else _text(root)}
    config = _parsed_config(listed.output)
    options = _without_filters(config)
    if listed.code != 0 or options is None:
        return state | _only_commit(folder, "git config", listed.code, deadline=deadline)
    git = (*_GIT, *options)
    status = _git(
        folder,
        ("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=dirty"),
        deadline=deadline - GIT_SECONDS / 3,  # leaves time for the commit, which matters most
        command=git,
    )  # fmt: skip
    if status.code != 0:
        return state | _only_commit(folder, "git status", status.code, deadline=deadline)
    state |= _parsed_status(status.output.decode("utf-8", "replace"))
    state["remote"] = _remote(config, state["branch"])
    state |= {"diff": None, "diff_is_truncated": False}
    if state["is_dirty"] and state["commit"]:
        diff = _git(folder, _DIFF, deadline=deadline, command=git, max_bytes=MAX_DIFF_BYTES)
        if diff.code == 0 or diff.is_cut:
            state |= {"diff": _diff_text(diff), "diff_is_truncated": diff.is_cut}
    return state


class _Answer(msgspec.Struct, frozen=True):
    code: int | None  # None: git could not be started
    output: bytes
    is_cut: bool = False


def _git(
    folder: str,
    arguments: Sequence[str],
    *,
    deadline: float,
    command: Sequence[str] = _GIT,
    max_bytes: int = 1 << 24,
) -> _Answer:
    """What git prints, up to `max_bytes`; when the deadline (monotonic, seconds) passes, git is killed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_TRACE")
    }
    environment |= {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        # A partial clone would fetch what it lacks, through whatever transport its configuration names.
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "LC_ALL": "C",
    }
    try:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what git started can be killed with it
        )
    except OSError:
        return _Answer(None, b"")
    watch = threading.Timer(max(deadline - time.monotonic(), 0.05), _kill, [process])
    watch.daemon = True
    watch.start()
    try:
        with process:
            assert process.stdout is not None
            output = process.stdout.read(max_bytes + 1)
            is_cut = len(output) > max_bytes
            if is_cut:
                _kill(process)
    finally:
        watch.cancel()
    return _Answer(process.returncode, output[:max_bytes], is_cut)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:  # it ended by itself
        pass


def _repository_root(folder: str) -> str | None:
    """The nearest folder with a `.git`, so that outside a repository no process is started."""
    while not os.path.lexists(os.path.join(folder, ".git")):
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above
    return folder


def _parsed_config(output: bytes) -> list[tuple[str, str, str]]:
    """`git config --list -z --show-scope` as (scope, key, value); keys are lower case where git has them so."""
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    listed: list[tuple[str, str, str]] = []
    for scope, item in zip(fields[::2], fields[1::2], strict=False):
        key, _, value = item.partition("\n")
        listed.append((scope, key, value))
    return listed


def _without_filters(config: list[tuple[str, str, str]]) -> list[str] | None:
    """Options that take away the filters a repository brings along, which status and diff would run.

    The user's own stay (LFS). None if that cannot be said: `-c` ends the key at the first "=".
    """
    names = {
        key.removeprefix("filter.").rpartition(".")[0]
        for scope, key, _ in config
        if scope in ("local", "worktree") and key.startswith("filter.")
    }
    if any("=" in name for name in names):
        return None
    options: list[str] = []
    for name in sorted(names):
        for key, value in (("clean", ""), ("process", ""), ("smudge", ""), ("required", "false")):
            options += ("-c", f"filter.{name}.{key}={value}")
    return options


def _parsed_status(text: str) -> dict[str, Json]:
    facts: dict[str, Json] = {"commit": None, "branch": None, "is_dirty": False}
    for line in text.splitlines():
        if line.startswith("# branch.oid "):
            commit = line.removeprefix("# branch.oid ")
            facts["commit"] = None if commit == "(initial)" else commit
        elif line.startswith("# branch.head "):
            branch = line.removeprefix("# branch.head ")
            facts["branch"] = None if branch == "(detached)" else branch
        elif not line.startswith("#"):
            facts["is_dirty"] = True
    return facts


def _only_commit(folder: str, what: str, code: int | None, *, deadline: float) -> dict[str, Json]:
    told = _git(folder, ("rev-parse", "--verify", "HEAD"), deadline=deadline)
    if code == -signal.SIGKILL:
        problem = f"{what} took too long"
    else:
        problem = f"{what} could not be used here (code {code}); run it by hand to see why"
    return {
        "commit": told.output.decode("ascii", "replace").strip() if told.code == 0 else None,
        "branch": None,
        "remote": None,
        "is_dirty": None,
        "diff": None,
        "diff_is_truncated": False,
        "problem": problem,
    }


def _remote(config: list[tuple[str, str, str]], branch: str | None) -> str | None:
    """Where the branch is pushed to, else `origin`, else any; without user names and passwords."""
    values = {key: value for _, key, value in config}
    urls = {
        key.removeprefix("remote.").removesuffix(".url"): value
        for key, value in values.items()
        if key.startswith("remote.") and key.endswith(".url")
    }
    wanted = (values.get(f"branch.{branch}.remote", ""), "origin", *sorted(urls))
    url = next((urls[name] for name in wanted if name in urls), None)
    return None if url is None else without_secrets(_text(url)).replace(f"{MASK}@", "")


def _diff_text(diff: _Answer) -> str:
    output = diff.output[: diff.output.rfind(b"\n") + 1] if diff.is_cut else diff.output
    return output.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


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
    return _text("-".join(parts))


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
            found.append((_normalised(parts["name"]), _text(parts["version"])))
        elif name.endswith(".egg-info"):  # a development install: no version in its name
            found.append((_normalised(name.removesuffix(".egg-info")), _egg_version(folder, name)))
    return tuple(found)


def _normalised(name: str) -> str:
    return _text(re.sub(r"[-_.]+", "-", name).lower())


def _egg_version(folder: str, name: str) -> str:
    head = _read_small(os.path.join(folder, name, "PKG-INFO"))
    found = re.search(r"^Version: *(\S+)", head, re.MULTILINE)
    return found[1] if found else ""


# --- the process ---


def host_name() -> str:
    """The name of this machine, or of this container."""
    return _text(platform.node() or "unknown")


def user_name() -> str:
    """The name of the user this process acts as; the number where it has no name (as in many containers)."""
    if sys.platform == "win32":
        return os.environ.get("USERNAME", "unknown")
    import pwd

    number = os.geteuid()
    try:
        return _text(pwd.getpwuid(number).pw_name)
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
