"""Logging and checking out share the blocks of large files where the file system can: XFS and Btrfs, really mounted.

    python tests/faults/reflink.py

Each file system lies in a file (a loop mount). What is asserted is what the kernel says of the blocks (FIEMAP: each
extent is shared) and of the room that is left. The same is then done without reflinks, and must be noticed, or nothing
was proved. Exit code 0: shared; 1: problems; 77: not run, or not for each of them, since this machine forbids it.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "core")]

import begat  # noqa: E402 - needs the path above
from begat import files  # noqa: E402
from faults.on_disks import NotPossible, prove  # noqa: E402

MIB = 1 << 20
IMAGE_BYTES = 512 * MIB
FILE_BYTES = 64 * MIB
# Names, the catalog, and what else is small.
SLACK_BYTES = 8 * MIB
MAKERS = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
_FIEMAP = 0xC020660B
_FIEMAP_SYNC = 1
_EXTENT_SHARED = 0x2000
_MOST_EXTENTS = 512


def is_shared(path: Path) -> bool:
    """Whether every extent of a file is one of another file as well, by what the kernel says."""
    header = struct.pack("=QQIIII", 0, 2**64 - 1, _FIEMAP_SYNC, 0, _MOST_EXTENTS, 0)
    buffer = bytearray(header + bytes(56 * _MOST_EXTENTS))
    with path.open("rb") as file:
        fcntl.ioctl(file, _FIEMAP, buffer)
    (count,) = struct.unpack_from("=I", buffer, 20)
    flags = [struct.unpack_from("=I", buffer, 32 + 56 * at + 40)[0] for at in range(count)]
    return 0 < count < _MOST_EXTENTS and all(flag & _EXTENT_SHARED for flag in flags)


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A new file system of this kind."""
    image, place = folder / f"{kind}.img", folder / kind
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    place.mkdir()
    for command in ([*MAKERS[kind], image], ["mount", "-t", kind, "-o", "loop", image, place]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotPossible(f"{' '.join(map(str, command[:3]))}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def used_bytes(place: Path) -> int:
    """What is used of a file system once all is written."""
    subprocess.run(["sync", "-f", place], check=True)
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def problems(place: Path) -> Iterator[str]:
    """What is not shared, or is wrong, when a file is logged and checked out on a file system."""
    source, out = place / "source.bin", place / "out"
    data = os.urandom(FILE_BYTES)
    source.write_bytes(data)
    with begat.open_store(place / "store") as store:
        before = used_bytes(place)
        version = store.log_artifact("large", source)
        if (grown := used_bytes(place) - before) > SLACK_BYTES:
            yield f"logging took {grown} bytes"
        [stored] = [
            p
            for p in (place / "store/objects").rglob("*")
            if p.is_file() and p.stat().st_size > MIB
        ]
        if not is_shared(source) or not is_shared(stored):
            yield "the object does not share the blocks of the source"
        before = used_bytes(place)
        version.download(out)
        if (grown := used_bytes(place) - before) > SLACK_BYTES:
            yield f"checking out took {grown} bytes"
        if not is_shared(out / "source.bin"):
            yield "the file that was checked out does not share the blocks of the object"
        if (out / "source.bin").read_bytes() != data:
            yield "the file that was checked out has other bytes"
        # Shared until somebody writes: what is edited in place is a user's own.
        for mine in (source, out / "source.bin"):
            with mine.open("r+b") as file:
                file.seek(FILE_BYTES // 2)
                file.write(b"edited in place")
        if not store.verify().is_sound:
            yield "an edit in place reached the store"
        if version.download(place / "again").joinpath("source.bin").read_bytes() != data:
            yield "after an edit in place, other bytes are checked out"


def without_reflinks(place: Path) -> Iterator[str]:
    """The same where nothing is shared: every check about blocks must find that."""
    share, copy_range = files.share_blocks, os.copy_file_range
    files.share_blocks = lambda _source, _target: False
    del os.copy_file_range
    try:
        found = list(problems(place))
    finally:
        files.share_blocks, os.copy_file_range = share, copy_range
    if sum("share" in each or "took" in each for each in found) != 4:
        yield f"without reflinks only this was noticed: {found}"


def tried(kind: str, folder: Path) -> list[str]:
    """What went wrong on a file system of this kind."""
    maker = MAKERS[kind][0]
    if shutil.which(maker) is None:
        package = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind]
        raise NotPossible(f"{maker} is missing (apt-get install {package})")
    os.environ["BEGAT_CACHE"] = str(folder / "cache")
    with mounted(kind, folder) as place:
        (place / "shared").mkdir()
        (place / "copied").mkdir()
        found = list(problems(place / "shared"))
        return found or list(without_reflinks(place / "copied"))


if __name__ == "__main__":
    sys.exit(prove(MAKERS, tried, "blocks are shared in both directions"))
