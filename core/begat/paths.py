"""What a stored path may be: relative, POSIX, UTF-8, and safe to restore on any file system.

The same check runs when a path is written and when a manifest is read back: a manifest is input too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from begat.errors import BadPath

MAX_SEGMENT_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_DEPTH = 256

# C0 and C1 controls; line and paragraph separators; bidirectional marks, embeddings and isolates (which make a name
# read other than it is); the byte-order mark; lone surrogates; noncharacters. A backslash is a separator on Windows.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_DRIVE = re.compile(r"[A-Za-z]:")
# Names that Windows reserves whatever extension follows (Microsoft, "Naming Files, Paths, and Namespaces").
_RESERVED = re.compile(r"(?i)(con|conin\$|conout\$|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?\Z")
# Whatever begins, holds or ends like one of these is looked at closely.
_SUSPECT = re.compile(r"(?i)^(?:con|prn|aux|nul|com|lpt)|[<>:\"|?*]|[. ]\Z")
_WINDOWS_CHARACTERS = re.compile(r'[<>:"|?*]')


def check_path(path: str) -> str:
    """The path itself if it may be stored; else `BadPath` naming what is wrong with it."""
    if not path:
        raise BadPath("an empty path cannot be stored; nothing was stored")
    if path.startswith("/"):
        raise _bad(path, "is absolute")
    if len(path) * 4 > MAX_PATH_BYTES and _length(path) > MAX_PATH_BYTES:
        raise _bad(path, f"is longer than {MAX_PATH_BYTES} bytes")
    segments = path.split("/")
    if len(segments) > MAX_DEPTH:
        raise _bad(path, f"is deeper than {MAX_DEPTH} folders")
    for segment in segments:
        problem = _segment_problem(segment)
        if problem:
            raise _bad(path, problem)
    return path


def check_segment(segment: str, path: str) -> None:
    """Raise `BadPath` for `path` unless this one segment of it may be stored."""
    problem = _segment_problem(segment)
    if problem:
        raise _bad(path, problem)


def check_symlink(path: str, target: str) -> None:
    """Raise `BadPath` unless a link at `path` may point to `target`: relative, and inside the version.

    The target may dangle inside the version. `..` may stand only at the beginning, and not climb out of the root:
    after a name, which may be a link itself, nobody who reads one entry can say where `..` leads. (With `d/up -> ..`,
    the harmless looking `out -> d/up/..` leaves the version.)
    """
    if not target:
        raise _bad(path, "is a link to nothing")
    if target.startswith("/"):
        raise _bad(path, f"is a link to the absolute path {target!r}")
    if len(target) * 4 > MAX_PATH_BYTES and _length(target) > MAX_PATH_BYTES:
        raise _bad(path, f"is a link whose target is longer than {MAX_PATH_BYTES} bytes")
    depth = path.count("/")
    is_after_a_name = False
    for segment in target.rstrip("/").split("/"):
        if segment == "..":
            depth -= 1
            if depth < 0:
                raise _bad(path, f"is a link that leaves the version ({target!r})")
            if is_after_a_name:
                raise _bad(path, f"is a link with '..' after a name ({target!r})")
        elif segment != ".":
            check_segment(segment, path)
            is_after_a_name = True


def resolve_link(path: str, target: str) -> str:
    """Where a link at `path` points, as a path of the version (`""` is the root): `a/b`, `../c` -> `c`."""
    parts = path.split("/")[:-1]
    for segment in target.rstrip("/").split("/"):
        if segment == "..":
            parts.pop()
        elif segment != ".":
            parts.append(segment)
    return "/".join(parts)


def path_key(path: str) -> bytes:
    """The bytes that paths are sorted by."""
    return path.encode("utf-8")


def parents(path: str) -> Iterator[str]:
    """The folders above a path, from the top: `a/b/c` -> `a`, `a/b`."""
    at = path.find("/")
    while at != -1:
        yield path[:at]
        at = path.find("/", at + 1)


def portability_problems(names: Iterable[str]) -> Iterator[str]:
    """What would go wrong with these paths, which are sorted, on Windows or macOS, a line each.

    Two names clash when they are equal after NFKC, case folding and removal of trailing dots and spaces. Folders
    count as well: `A/x` and `a/y` fall into one folder there.
    """
    # Of each folder that is open, the names in it by what they are there. Sorted paths never come back to a folder
    # that was left.
    siblings: dict[str, dict[str, str]] = {"": {}}
    last, here = "", siblings[""]
    for path in names:
        folder, _, name = path.rpartition("/")
        if folder != last:
            for left in [known for known in siblings if not _is_in(folder, known)]:
                del siblings[left]
            for inner in parents(path):
                if inner not in siblings:
                    siblings[inner] = {}
                    above, _, inner_name = inner.rpartition("/")
                    yield from _problems(inner, inner_name, siblings[above])
            last, here = folder, siblings[folder]
        # Nearly all names are like this: ASCII, for which this is all that normalisation does, and nothing odd in it.
        if (
            not name.isascii()
            or _SUSPECT.search(name)
            or here.setdefault(name.lower(), name) != name
        ):
            yield from _problems(path, name, here)


def _is_in(folder: str, above: str) -> bool:
    return not above or folder == above or folder.startswith(f"{above}/")


def _problems(path: str, name: str, siblings: dict[str, str]) -> Iterator[str]:
    # Nearly all names are ASCII, for which this is all that normalisation does.
    folded = name.lower().rstrip(". ") if name.isascii() else _folded(name)
    other = siblings.setdefault(folded, name)
    if other != name:
        clash = path[: len(path) - len(name)] + other
        yield f"{clash!r} and {path!r} are one name on a case-insensitive or normalising file system"
    if _SUSPECT.search(name):
        problem = _windows_problem(name)
        if problem:
            yield f"{path!r}: {problem}"


def _windows_problem(segment: str) -> str | None:
    if _RESERVED.match(segment):
        return f"{segment!r} is a device name on Windows"
    if _WINDOWS_CHARACTERS.search(segment):
        return f"{segment!r} holds a character that Windows does not allow in names"
    if segment[-1] in ". ":
        return f"{segment!r} ends with a dot or a space, which Windows drops"
    return None


def _folded(segment: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", segment).casefold()).rstrip(
        ". "
    )


def _segment_problem(segment: str) -> str | None:
    if segment in ("", ".", ".."):
        return "has an empty segment" if not segment else f"has the segment {segment!r}"
    found = _FORBIDDEN.search(segment)
    if found:
        code = ord(found.group())
        if 0xDC80 <= code <= 0xDCFF:  # Python's way to hand on a byte of a name that is no text
            return f"is not UTF-8: it holds the byte 0x{code - 0xDC00:02X}"
        return f"holds the character U+{code:04X}"
    if len(segment) * 4 > MAX_SEGMENT_BYTES and _length(segment) > MAX_SEGMENT_BYTES:
        return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    if _DRIVE.match(segment):
        return f"has the drive letter {segment[:2]!r}"
    return None


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _bad(path: str, problem: str) -> BadPath:
    shown = path if len(path) <= 120 else path[:100] + "..."
    return BadPath(f"the path {shown!r} {problem}; nothing was stored")
