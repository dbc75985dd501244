"""What git says of the repository around a folder, whoever made it: nothing that is named in there is run.

It is found without the network, in bounded time, and never fails: what cannot be known is left out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

import msgspec

from begat.config import MASK, without_secrets
from begat.metadata import storable
from begat.model import Json

MAX_DIFF_BYTES = 10 * 1024 * 1024
GIT_SECONDS = 5.0

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
    state: dict[str, Json] = {"root": None if root is None else storable(root)}
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
            state |= {"diff": _diffstorable(diff), "diff_is_truncated": diff.is_cut}
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
    return None if url is None else without_secrets(storable(url)).replace(f"{MASK}@", "")


def _diffstorable(diff: _Answer) -> str:
    output = diff.output[: diff.output.rfind(b"\n") + 1] if diff.is_cut else diff.output
    return output.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
