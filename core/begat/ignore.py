"""Which files of a folder are meant: `.begatignore`, the globs of `include=` and `exclude=`, and what is never logged.

The rules of gitignore are written out here, because a walk needs to know whether a *folder* may be skipped, and the
library for them (pathspec 1.1) skips the folder of `d/**` + `!d/keep.txt`: the file that was asked for would be missing
from the version without a word. Tests compare with `git check-ignore`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from begat.errors import BadInput, LimitExceeded, UnsupportedFile
from begat.files import open_source, told_as

IGNORE_FILE = ".begatignore"
MAX_IGNORE_BYTES = 1 << 20

# A store's folder has this file: a JSON object with the number "format" and the texts "uid", "catalog" and "objects".
STORE_FILE = "format.json"
_MAX_STORE_FILE_BYTES = 1 << 16

_LEFT_OUT_NAMES = frozenset({".git", ".hg", ".svn", ".begat"})

Globs = str | Sequence[str]


# --- what is never logged ---


def is_always_left_out(name: str, path: str | Path) -> bool:
    """Whether the entry `name` of a folder, a file or folder at `path`, is never part of a version.

    True for `.git` (also the file that a worktree or submodule has), `.hg`, `.svn`, `.begat`, and for any begat store,
    whatever its folder is called.
    """
    return name in _LEFT_OUT_NAMES or is_store(path)


def is_store(folder: str | Path) -> bool:
    """Whether a folder is a begat store. False for a file, and where that cannot be read."""
    try:
        fd = open_source(os.path.join(folder, STORE_FILE))
    except OSError:  # nearly always: there is no such file
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        data = os.read(fd, _MAX_STORE_FILE_BYTES)
    except OSError:
        return False
    finally:
        os.close(fd)
    try:
        facts: object = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(facts, dict):
        return False
    facts = cast("dict[str, Any]", facts)
    is_text = all(isinstance(facts.get(key), str) for key in ("uid", "catalog", "objects"))
    return is_text and isinstance(facts.get("format"), int)


# --- .begatignore ---


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    is_kept: bool  # the line began with "!"
    for_folders_only: bool
    for_names: bool  # no "/" in it: matched with the last segment, at any depth


class Ignore:
    """The rules of one `.begatignore`, in the words of gitignore.

    Only the file at the root of what is logged counts; one in a folder below is an ordinary file. `.begatignore`
    itself is logged. Unlike in git, `?` and `[...]` stand for one character, not for one byte.
    """

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self._rules = [rule for rule in map(_rule, lines) if rule is not None]
        self._folders: dict[str, bool] = {}

    @classmethod
    def load(cls, root: Path) -> Ignore:
        """The rules of `root/.begatignore`; no rules if there is none.

        Raises `UnsupportedFile` if it is not a regular file, `LimitExceeded` above 1 MiB.
        """
        path = root / IGNORE_FILE
        if not os.path.lexists(path):
            return cls()
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UnsupportedFile(
                f"{path} is not a regular file, so its rules were not read; nothing was stored"
            )
        with told_as(f"reading {path}"), open(open_source(path), "rb") as file:
            data = file.read(MAX_IGNORE_BYTES + 1)
        if len(data) > MAX_IGNORE_BYTES:
            raise LimitExceeded(
                f"{path} is larger than {MAX_IGNORE_BYTES} bytes; nothing was stored"
            )
        return cls(parse_lines(data))

    @property
    def has_rules(self) -> bool:
        """False if nothing is ever ignored."""
        return bool(self._rules)

    def is_ignored(self, path: str, is_directory: bool) -> bool:
        """Whether a path below the root (`a/b`, no slash at the end) is left out.

        As in git, nothing below an ignored folder can be had back by a later `!` line.
        """
        if not self._rules:
            return False
        folder = path.rpartition("/")[0]
        if folder and self._is_folder_ignored(folder):
            return True
        if is_directory:
            return self._is_folder_ignored(path)
        return self._last_word(path, is_directory=False)

    def _is_folder_ignored(self, folder: str) -> bool:
        known = self._folders.get(folder)
        if known is None:
            above = folder.rpartition("/")[0]
            known = bool(above and self._is_folder_ignored(above))
            known = known or self._last_word(folder, is_directory=True)
            self._folders[folder] = known
        return known

    def _last_word(self, path: str, *, is_directory: bool) -> bool:
        name = path.rpartition("/")[2]
        for rule in reversed(self._rules):
            if rule.for_folders_only and not is_directory:
                continue
            if rule.pattern.match(name if rule.for_names else path):
                return not rule.is_kept
        return False


def parse_lines(data: bytes) -> list[str]:
    """The lines of a `.begatignore`; bytes that are not UTF-8 match names that hold the same bytes."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _rule(line: str) -> _Rule | None:
    if line.startswith("#"):
        return None
    line = _without_trailing_spaces(line)
    is_kept = line.startswith("!")
    if is_kept:
        line = line[1:]
    for_folders_only = line.endswith("/")
    if for_folders_only:
        line = line[:-1]
    if not line:
        return None
    for_names = "/" not in line
    expression = _translated(line.removeprefix("/"))
    if expression is None:
        return None
    return _Rule(re.compile(expression, re.DOTALL), is_kept, for_folders_only, for_names)


def _without_trailing_spaces(line: str) -> str:
    r"""`a  ` -> `a`, `a\ ` -> `a\ `: a quoted space stays."""
    end = len(line.rstrip(" "))
    stripped = line[:end]
    is_quoting = (len(stripped) - len(stripped.rstrip("\\"))) % 2 == 1
    return line[: end + 1] if is_quoting else stripped


# --- globs ---


class Matcher:
    """Which paths of a folder or version the globs of `include` and `exclude` mean."""

    def __init__(self, include: tuple[str, ...] | None, exclude: tuple[str, ...]) -> None:
        self.prefixes = ("",) if include is None else tuple(map(_literal_start, include))
        """Texts that every chosen path begins with one of."""
        self._include = None if include is None else [_compiled(glob) for glob in include]
        self._exclude = [_compiled(glob) for glob in exclude]

    @property
    def has_globs(self) -> bool:
        """False if every path is meant."""
        return self._include is not None or bool(self._exclude)

    def is_chosen(self, path: str) -> bool:
        """Whether the file at this path (`a/b.csv`) is meant: some glob of `include`, and none of `exclude`."""
        if self._include is not None and not any(glob.match(path) for glob in self._include):
            return False
        return not self._exclude or not self._is_excluded(path)

    def leaves_out_folder(self, path: str) -> bool:
        """Whether `exclude` names this folder or one above it, so that nothing in it need be looked at."""
        return bool(self._exclude) and self._is_excluded(path)

    def _is_excluded(self, path: str) -> bool:
        at = path.find("/")
        while at != -1:
            if any(glob.match(path[:at]) for glob in self._exclude):
                return True
            at = path.find("/", at + 1)
        return any(glob.match(path) for glob in self._exclude)


def matcher(include: Globs | None = None, exclude: Globs | None = None) -> Matcher:
    """The paths that `include` means (None: all) without those that `exclude` means.

    A glob is matched with the whole path: `*.csv` (in the root only), `**/*.csv` (at any depth), `train/**` or
    `train/` or just `train` (all in that folder), `?` and `[a-z]` (one character that is not `/`). A folder that
    `exclude` names is left out with all in it.

    Raises `BadInput` for a glob that could never match.
    """
    chosen = None if include is None else _globs(include, "include")
    return Matcher(chosen, () if exclude is None else _globs(exclude, "exclude"))


def _globs(globs: Globs, what: str) -> tuple[str, ...]:
    listed = (globs,) if isinstance(globs, str) else tuple(globs)
    for glob in cast("tuple[object, ...]", listed):
        if not isinstance(glob, str):
            raise TypeError(f"{what} takes globs such as '*.csv', not {type(glob).__name__}")
        _compiled(glob)
    return listed


def _literal_start(glob: str) -> str:
    return re.split(r"[*?\[]", glob, maxsplit=1)[0]


@lru_cache(maxsize=512)
def _compiled(glob: str) -> re.Pattern[str]:
    if "\\" in glob:
        raise BadInput(f"the glob {glob!r} has a backslash; write '/' between folders")
    segments = glob.removesuffix("/").split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise BadInput(
            f"the glob {glob!r} could match nothing: paths are relative, as in 'train/*.csv', without '.' and '..'"
        )
    expression = _translated(glob.removesuffix("/"))
    if expression is None:
        raise BadInput(
            f"the glob {glob!r} has a '[' without its ']'; write '[[]' for the character"
        )
    # "train/" is what lies in the folder; "train" is either the file or what lies in the folder.
    if glob.endswith("/"):
        expression = expression.removesuffix(r"\Z") + r"/.+\Z"
    elif not re.search(r"[*?\[]", glob):
        expression = expression.removesuffix(r"\Z") + r"(?:/.+)?\Z"
    return re.compile(expression, re.DOTALL)


# --- the language of both: git's wildmatch.c with WM_PATHNAME ---


def _translated(pattern: str) -> str | None:
    """A pattern as a regular expression for whole paths; None if it can match nothing (`[` or backslash left open).

    `**` crosses folders only where it is a whole segment; elsewhere it means `*`.
    """
    out: list[str] = []
    at, end = 0, len(pattern)
    while at < end:
        character = pattern[at]
        if character == "*":
            at = _translate_stars(pattern, at, out)
        elif character == "?":
            out.append("[^/]")
            at += 1
        elif character == "[":
            translated = _translate_class(pattern, at + 1)
            if translated is None:
                return None
            out.append(translated[0])
            at = translated[1]
        else:
            if character == "\\":
                at += 1
                if at == end:
                    return None
            out.append(re.escape(pattern[at]))
            at += 1
    return "".join(out) + r"\Z"


def _translate_stars(pattern: str, at: int, out: list[str]) -> int:
    """Append what the stars at `at` mean; returns where the pattern goes on."""
    after = at
    while pattern[after : after + 1] == "*":
        after += 1
    is_segment = (at == 0 or pattern[at - 1] == "/") and pattern[after : after + 1] in ("", "/")
    if after - at < 2 or not is_segment:
        out.append("[^/]*")
    elif after == len(pattern):
        out.append(".*" if at == 0 else ".+")
    else:
        if out[-1:] != [
            "(?:.*/)?"
        ]:  # `**/**/` says nothing more, and would be tried in every combination
            out.append("(?:.*/)?")
        after += 1
    return after


_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "\\x21-\\x7e",
    "lower": "a-z",
    "print": "\\x20-\\x7e",
    "punct": "\\x21-\\x2f\\x3a-\\x40\\x5b-\\x60\\x7b-\\x7e",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


def _translate_class(pattern: str, at: int) -> tuple[str, int] | None:
    """`[!a-z]` -> a class, and where the pattern goes on; None if it is not closed or names an unknown class."""
    is_negated = pattern[at : at + 1] in ("!", "^")
    at += is_negated
    parts: list[str] = []
    first = at
    while at < len(pattern):
        if pattern[at] == "]" and at > first:
            return _class_expression(parts, is_negated), at + 1
        posix = re.compile(r"\[:([^\]]*):\]").match(pattern, at)
        if posix:
            if posix[1] not in _POSIX_CLASSES:
                return None
            parts.append(_POSIX_CLASSES[posix[1]])
            at = posix.end()
            continue
        low, at = _class_character(pattern, at)
        high = low
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] not in ("", "]"):
            high, at = _class_character(pattern, at + 1)
        if not low or not high:
            return None
        # In a range that runs backwards git has compared the first character already when it sees the rest.
        parts.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else re.escape(low))
    return None


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] == "\\":
        at += 1
    return pattern[at : at + 1], at + 1


def _class_expression(parts: list[str], is_negated: bool) -> str:
    if not parts:
        return "[^/]" if is_negated else r"(?!)"
    return f"(?!/)[{'^' if is_negated else ''}{''.join(parts)}]"
