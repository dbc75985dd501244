"""Folders for tests: generated ones, how to make them, and everything that can be seen of one."""

import contextlib
import json
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

from hypothesis import strategies as st

from begat.errors import BadPath
from begat.paths import check_segment

MIB = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of `size` bytes that follow from `seed`; a few seeds only, so that files share content."""

    size: int
    seed: int
    is_executable: bool = False

    @property
    def data(self) -> bytes:
        """Its bytes: of even seeds incompressible, of odd ones text that compresses."""
        if self.seed % 2:
            return (b"%d,begat\n" % self.seed * (self.size // 8 + 1))[: self.size]
        return random.Random(self.seed).randbytes(self.size)


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Empty:
    """A folder with nothing in it."""


Node: TypeAlias = File | Link | Empty
Tree: TypeAlias = dict[str, Node]


def make(tree: Tree, root: Path) -> Path:
    """Make a folder with these nodes; the folder itself if there are none."""
    root.mkdir(parents=True, exist_ok=True)
    for path, node in tree.items():
        place = root / path
        if isinstance(node, Empty):
            place.mkdir(parents=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(node, Link):
            place.symlink_to(node.target)
        else:
            place.write_bytes(node.data)
            place.chmod(0o755 if node.is_executable else 0o644)
    return root


@contextlib.contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """A new folder on a disk in memory, where the system has one: thousands of commits need not wait for a real disk.

    It is removed in the end, read-only folders in it too.
    """
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else otherwise
    root = Path(tempfile.mkdtemp(prefix="begat-test-", dir=place))
    try:
        yield root
    finally:
        remove(root)


def safetensors(tensors: Sequence[bytes]) -> bytes:
    """The bytes of a file with these tensors, after a header that has the same length for any few of them."""
    ends = list(accumulate(len(tensor) for tensor in tensors))
    header = {
        f"t{n}": {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [end - len(tensor), end]}
        for n, (tensor, end) in enumerate(zip(tensors, ends, strict=True))
    }
    text = json.dumps(header).encode().ljust(1016)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors)


def open_below(root: Path) -> list[str]:
    """What this process has open below a folder, removed or not; threads of other tests open and close theirs."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this very list, and what was closed since
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if path.startswith(str(root))]


def remove(root: Path) -> None:
    """Remove a folder and all in it, read-only folders too."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)
    shutil.rmtree(root)


def seen(root: Path) -> dict[str, tuple[str, object]]:
    """All that a version keeps of a folder: each path with its kind, and bytes and executable bit, or target."""
    found: dict[str, tuple[str, object]] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            place = Path(folder, name)
            path = place.relative_to(root).as_posix()
            mode = place.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[path] = ("link", os.readlink(place))
            elif stat.S_ISDIR(mode):
                found[path] = ("folder", None)
            else:
                found[path] = ("file", (place.read_bytes(), bool(mode & stat.S_IXUSR)))
    return found


# --- strategies ---

# Names that mean something to begat, at any depth or at the root.
_TAKEN = {".git", ".hg", ".svn", ".begat", ".begatignore", "format.json"}


def _is_segment(name: str) -> bool:
    try:
        check_segment(name, name)
    except BadPath:
        return False
    return name not in _TAKEN and len(name.encode()) <= 255


_plain = st.sampled_from(
    ["a", "b", "data", "A", "é", "e\u0301", "名前", "x.bin", "-", " ", "..a", "a.", "\U0001f600"]
)
_any = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=12)
_long = st.sampled_from(["n" * 255, "ü" * 127 + "x", "名" * 85, "\U0001f600" * 63 + "abc"])
segments = st.one_of(_plain, _plain, _any, _long).filter(_is_segment)
# Eight segments of 255 bytes and the folder of a test stay below the 4096 bytes that Linux takes in one call.
_short_paths = st.lists(segments, min_size=1, max_size=8).map("/".join)
_deep_paths = st.integers(9, 256).map(lambda depth: "/".join(["d"] * (depth - 1) + ["f"]))
paths = st.one_of(_short_paths, _short_paths, _short_paths, _deep_paths)
sizes = st.one_of(
    st.integers(0, 300),
    st.integers(0, 300),
    st.sampled_from([0, 1, 65_535, 65_536, MIB - 1, MIB, MIB + 1]),
)
files = st.builds(File, sizes, st.integers(0, 5), st.booleans())


@st.composite
def trees(draw: st.DrawFn, max_size: int = 12) -> Tree:
    """A tree with unusual names, files around every threshold, links that are kept, dangling and looping."""
    tree: Tree = {}
    taken: set[str] = set()  # paths and the folders above them
    for path in draw(st.lists(paths, max_size=max_size)):
        above = {path[:i] for i, c in enumerate(path) if c == "/"}
        if path in taken or above & tree.keys():
            continue
        taken |= above | {path}
        kind = draw(st.sampled_from(["file", "file", "file", "empty", "link"]))
        if kind == "link":
            known = sorted(taken)
            to = draw(st.one_of(st.sampled_from(known), _short_paths))
            tree[path] = Link(os.path.relpath(to, os.path.dirname(path) or "."))
        else:
            tree[path] = Empty() if kind == "empty" else draw(files)
    return tree
