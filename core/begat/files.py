"""The only module, with `folders` above it, that writes to the file system: every change of a file goes through here.

So crash tests can stop or fail each single operation (`fault` below), and one reading of this file shows that nothing
is published before it is durable: temporary file in the same file system, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from begat.errors import (
    AccessDenied,
    BegatError,
    DestinationDiffers,
    ReadOnly,
    StoreFull,
    StoreUnavailable,
)

# Called with (operation, path) before each operation. Tests set it to raise, to kill the process, or to count.
fault: Callable[[str, str], None] | None = None

COPY_BYTES = 1 << 20
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
DIRECTORY = getattr(os, "O_DIRECTORY", 0)
BINARY = getattr(os, "O_BINARY", 0)
CLOEXEC = getattr(os, "O_CLOEXEC", 0)
HAS_DIRECTORY_FDS = os.open in os.supports_dir_fd and bool(NOFOLLOW)
# From linux/fs.h: share the blocks of one file with another (Btrfs, XFS, bcachefs, overlay over them).
_FICLONE = 0x40049409
_READ_SOURCE = os.O_RDONLY | NOFOLLOW | CLOEXEC | BINARY | getattr(os, "O_NONBLOCK", 0)


def about_to(operation: str, path: object) -> None:
    """Tell `fault` what comes next; called before each operation that changes something."""
    if fault is not None:
        fault(operation, str(path))


# --- errors of the operating system, in the words of the tree ---

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota has no room left."""
    return error.errno in _FULL


def disk_of(path: Path) -> Path:
    """The folder on which the file system that holds a path is mounted."""
    path = Path(os.path.realpath(path))
    while not os.path.ismount(path):
        path = path.parent
    return path


def lacks_names(path: Path) -> bool:
    """Whether no file can be made any more on the file system that holds a path: all its inodes are taken."""
    with contextlib.suppress(OSError):
        found = os.statvfs(path)
        return found.f_files > 0 and found.f_favail == 0  # some file systems count none
    return False


def translated(error: OSError, what: str) -> BegatError:
    """The error of our tree for one of the operating system, saying what was being done."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or str(error)
    if is_full(error):
        return StoreFull(
            f"{what} failed: {reason}{where}. Nothing that was stored before is lost; free some space and try again"
        )
    if isinstance(error, FileExistsError):
        return DestinationDiffers(f"{what} failed: it exists already{where}. Nothing was changed")
    if error.errno == errno.EROFS:
        return ReadOnly(f"{what} failed: the file system is read-only{where}. Nothing was changed")
    if error.errno in _DENIED:
        return AccessDenied(
            f"{what} failed: {reason}{where}. Nothing was changed; check who owns the folder"
        )
    return StoreUnavailable(
        f"{what} failed: {reason}{where}. Nothing that was stored before is lost; try again"
    )


@contextlib.contextmanager
def told_as(what: str) -> Generator[None]:
    """Errors of the operating system inside the block leave it as errors of our tree."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BegatError):
            raise
        raise translated(error, what) from error


# --- folders ---


def make_directory(path: Path) -> None:
    """Make a folder and those above it, durably: each new name is fsynced into the folder that holds it."""
    path = Path(os.path.abspath(path))  # so that there is an end to the folders above it
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        about_to("mkdir", folder)
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not folder.is_dir():  # a file or a dangling link; else another process was faster
                raise
        sync_directory(folder.parent)


def temporary_directory(prefix: str, *, above: str | os.PathLike[str] | None = None) -> Path:
    """A new, empty folder of this process, outside any store, in `above` or in the system's place for them; the caller
    removes it (`removing`)."""
    place = os.fspath(above) if above is not None else tempfile.gettempdir()
    about_to("mkdir", place)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=place))


def sync_directory(path: Path, *, fd: int | None = None) -> None:
    """Make the names in a folder (open as `fd`, perhaps) durable, as far as its file system can do so."""
    if not DIRECTORY:
        return
    about_to("fsync-directory", path)
    opened = os.open(path, os.O_RDONLY | DIRECTORY | CLOEXEC) if fd is None else fd
    try:
        os.fsync(opened)
    except OSError as error:
        if sys.platform != "darwin" and error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        if fd is None:
            os.close(opened)


# --- files of the store: temporary, durable, published ---


class NewFile:
    """A file that has no final name yet: write to `fd`, then `publish`; leaving without that removes it.

    With `link_to` it is a second name of a file of ours, complete and in the same file system: no byte is copied.
    """

    def __init__(self, folder: Path, suffix: str = "", *, link_to: Path | None = None) -> None:
        self.path = folder / f"{secrets.token_hex(8)}{suffix}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if link_to is not None:
            hard_link(link_to, self.path)
            flags = os.O_RDONLY
        else:
            about_to("create", self.path)
        self.fd = os.open(self.path, flags | CLOEXEC | BINARY, 0o600)
        self._is_here = True

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        about_to("write", self.path)
        write_all(self.fd, data)

    def publish(self, target: Path, *, mode: int = 0o444, durable: bool = True) -> None:
        """Give the file its final name, durably: all its bytes before its name.

        An existing file is replaced in one step; names of objects are never used twice, so there is none. What is not
        `durable` may be gone or torn after a power cut.
        """
        os.fchmod(self.fd, mode)  # before the fsync, which makes it durable too
        if durable:
            sync_file(self.fd, self.path)
        self._close()
        rename(self.path, target)
        self._is_here = False
        if durable:
            sync_directory(target.parent)

    def discard(self) -> None:
        """Close and remove the file, if it was not published."""
        self._close()
        if self._is_here:
            self._is_here = False
            remove(self.path)

    def _close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()


def write_all(fd: int, data: bytes | memoryview, path: Path | None = None) -> None:
    """Write every byte; `os.write` may take only some of them. With `path` it is an operation of its own."""
    if path is not None:
        about_to("write", path)
    done = os.write(fd, data)
    if done == memoryview(data).nbytes:
        return
    view = memoryview(data).cast("B")[done:]
    while view:
        view = view[os.write(fd, view) :]


def sync_file(fd: int, path: Path) -> None:
    """Make the bytes of an open file durable."""
    about_to("fsync", path)
    os.fsync(fd)


def rename(source: Path, target: Path) -> None:
    """Give a file another name in the same file system, in one step."""
    about_to("rename", target)
    os.replace(source, target)


def replace_with(
    target: Path, data: bytes, *, temporary: Path | None = None, mode: int = 0o644
) -> None:
    """Put `data` under a name, durably and in one step; readers see the old bytes or the new ones."""
    with NewFile(temporary or target.parent, ".tmp") as new:
        new.write(data)
        new.publish(target, mode=mode)


def append_line(path: Path, line: bytes, *, durable: bool) -> None:
    """Append one line to a file (made if missing) with a single write, so that a crash tears at most the last line.

    A torn line is ended first, so that it spoils no other one. The name of a new file is durable in any case.
    """
    about_to("append", path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | CLOEXEC | BINARY, 0o600)
    try:
        size_bytes = os.fstat(fd).st_size
        is_torn = size_bytes > 0 and os.pread(fd, 1, size_bytes - 1) != b"\n"
        write_all(fd, b"\n" + line if is_torn else line)
        if durable:
            sync_file(fd, path)
    finally:
        os.close(fd)
    if size_bytes == 0:
        sync_directory(path.parent)


def remove(path: Path) -> bool:
    """Remove a file or link; False if there was none."""
    about_to("remove", path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def set_mode(path: Path, mode: int) -> None:
    """Set the permission bits of a file or folder."""
    about_to("chmod", path)
    os.chmod(path, mode)


def set_times(path: Path, at_ns: int) -> None:
    """Set access and modification time, in nanoseconds since 1970 UTC (a cache's least-recently-used order)."""
    about_to("utime", path)
    os.utime(path, ns=(at_ns, at_ns))


def hard_link(source: Path, target: Path) -> None:
    """Give a file a second name; `FileExistsError` if something stands there, which is never replaced."""
    about_to("link", target)
    os.link(source, target)


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, made if missing. It holds no bytes: nothing of it needs to be durable."""
    about_to("open-lock", path)
    # Whoever may write in the folder may lock: the user's umask decides, as for the folder itself.
    return os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW | CLOEXEC | BINARY, 0o666)


def hold_blocks(path: Path, size_bytes: int, *, beside_bytes: int = 0) -> None:
    """Let a file of ours (made if missing) have so many bytes of real blocks; what is in them does not matter.

    The disk must have `beside_bytes` more. If it has not, the file is removed, so that its blocks are free for others,
    and the error is raised. Nothing is durable: a power cut may take the file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW | CLOEXEC | BINARY, 0o644)
    try:
        about_to("allocate", path)
        _allocate(fd, size_bytes + beside_bytes)
        os.ftruncate(fd, size_bytes)
    except OSError:
        remove(path)
        raise
    finally:
        os.close(fd)


def _allocate(fd: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            return
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    write_at(fd, bytes(size_bytes), 0)


def empty_file(fd: int, path: os.PathLike[str]) -> None:
    """Take back all that was written to an open file of ours."""
    about_to("truncate", path)
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)


# --- copying bytes ---


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a new name; not durable, since nothing that must last is made this way."""
    source_fd = os.open(source, os.O_RDONLY | CLOEXEC | BINARY)
    try:
        about_to("create", target)
        target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOEXEC | BINARY, 0o600)
        try:
            copy_bytes(source_fd, target_fd, os.fstat(source_fd).st_size, target)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def copy_bytes(source: int, target: int, length: int, path: Path, *, offset: int = 0) -> int:
    """Copy up to `length` bytes from one open file to the end of another; fewer only if the source ends before.

    Blocks are shared where the file system can (whole files); otherwise the kernel copies, and only where it cannot
    (other file systems, other systems) do the bytes pass through Python. Returns how many bytes were copied.
    """
    about_to("copy", path)
    # A reflink of a whole file replaces whatever the target holds.
    is_whole = offset == 0 and os.fstat(source).st_size == length and os.fstat(target).st_size == 0
    if is_whole and share_blocks(source, target):
        os.lseek(target, 0, os.SEEK_END)
        return length
    start = os.lseek(target, 0, os.SEEK_CUR)
    copied = copy_range(source, target, length, offset=offset, at=start)
    os.lseek(target, start + copied, os.SEEK_SET)
    return copied


def copy_range(source: int, target: int, length: int, *, offset: int, at: int) -> int:
    """Copy up to `length` bytes from `offset` of one open file to position `at` of another; their own stay.

    Fewer only if the source ends before. A step of something larger, so that it is no operation of its own.
    """
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while copied < length:
                most = min(length - copied, 1 << 30)
                step = os.copy_file_range(source, target, most, offset + copied, at + copied)
                if step == 0:
                    break
                copied += step
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    # Some file systems answer 0 instead of an error (procfs, some network ones): read what is missing, if anything.
    buffer = memoryview(bytearray(min(COPY_BYTES, max(length - copied, 1))))
    while size := read_at(source, buffer[: length - copied], offset + copied):
        write_at(target, buffer[:size], at + copied)
        copied += size
    return copied


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte from a position on; the file's own position stays."""
    view = memoryview(data).cast("B")
    while view:
        size = os.pwrite(fd, view, offset)
        view, offset = view[size:], offset + size


def send(fd: int, offset: int, length: int) -> None:
    """Let the system begin to write a range of an open file to its disk; it promises nothing."""
    if sys.platform.startswith("linux"):
        # It drops what is clean, and all of this is dirty: so it is only written (mm/fadvise.c).
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill (part of) a buffer from a position of an open file; 0 at its end."""
    return os.preadv(fd, [buffer], offset)


def share_blocks(source: int, target: int) -> bool:
    """Let an open, empty file have the blocks of another, copied only when either changes (a reflink); False if not.

    All of the source: whoever calls this has compared its size.
    """
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


# --- reading users' files ---


def open_source(path: str | Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of a user's file for reading, never through a link and never waiting at a pipe."""
    if dir_fd is None:
        return os.open(path, _READ_SOURCE)
    return os.open(path, _READ_SOURCE, dir_fd=dir_fd)


def open_directory(path: str | Path, *, through_link: bool = False) -> int:
    """A descriptor of a folder for listing it, where the system has such; `through_link` if the path may be a link."""
    flags = os.O_RDONLY | DIRECTORY | CLOEXEC | (0 if through_link else NOFOLLOW)
    return os.open(path, flags)
