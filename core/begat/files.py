"""The only module that writes to the file system: every change of a file goes through here.

So crash tests can stop or fail each single operation (`fault` below), and one reading of this file shows that nothing
is published before it is durable: temporary file in the same file system, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
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
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
HAS_DIRECTORY_FDS = os.open in os.supports_dir_fd and bool(_NOFOLLOW)
# From linux/fs.h: share the blocks of one file with another (Btrfs, XFS, bcachefs, overlay over them).
_FICLONE = 0x40049409


def _about_to(operation: str, path: object) -> None:
    if fault is not None:
        fault(operation, str(path))


# --- errors of the operating system, in the words of the tree ---

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def translated(error: OSError, what: str) -> BegatError:
    """The error of our tree for one of the operating system, saying what was being done."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
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
        _about_to("mkdir", folder)
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not folder.is_dir():  # a file or a dangling link; else another process was faster
                raise
        sync_directory(folder.parent)


def temporary_directory(prefix: str) -> Path:
    """A new, empty folder of this process, outside any store; the caller removes it (`removing`)."""
    _about_to("mkdir", tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=prefix))


def sync_directory(path: Path, *, fd: int | None = None) -> None:
    """Make the names in a folder (open as `fd`, perhaps) durable, as far as its file system can do so."""
    if not _DIRECTORY:
        return
    _about_to("fsync-directory", path)
    opened = os.open(path, os.O_RDONLY | _DIRECTORY | _CLOEXEC) if fd is None else fd
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
            _about_to("create", self.path)
        self.fd = os.open(self.path, flags | _CLOEXEC | _BINARY, 0o600)
        self._is_here = True

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        _about_to("write", self.path)
        write_all(self.fd, data)

    def publish(self, target: Path, *, mode: int = 0o444) -> None:
        """Give the file its final name, durably: all its bytes before its name.

        An existing file is replaced in one step; names of objects are never used twice, so there is none.
        """
        os.fchmod(self.fd, mode)  # before the fsync, which makes it durable too
        sync_file(self.fd, self.path)
        self._close()
        rename(self.path, target)
        self._is_here = False
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
        _about_to("write", path)
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def sync_file(fd: int, path: Path) -> None:
    """Make the bytes of an open file durable."""
    _about_to("fsync", path)
    os.fsync(fd)


def rename(source: Path, target: Path) -> None:
    """Give a file another name in the same file system, in one step."""
    _about_to("rename", target)
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
    _about_to("append", path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _CLOEXEC | _BINARY, 0o600)
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
    _about_to("remove", path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def set_mode(path: Path, mode: int) -> None:
    """Set the permission bits of a file or folder."""
    _about_to("chmod", path)
    os.chmod(path, mode)


def set_times(path: Path, at_ns: int) -> None:
    """Set access and modification time, in nanoseconds since 1970 UTC (a cache's least-recently-used order)."""
    _about_to("utime", path)
    os.utime(path, ns=(at_ns, at_ns))


def hard_link(source: Path, target: Path) -> None:
    """Give a file a second name; `FileExistsError` if something stands there, which is never replaced."""
    _about_to("link", target)
    os.link(source, target)


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, made if missing. It holds no bytes: nothing of it needs to be durable."""
    _about_to("open-lock", path)
    # Whoever may write in the folder may lock: the user's umask decides, as for the folder itself.
    return os.open(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW | _CLOEXEC | _BINARY, 0o666)


def empty_file(fd: int, path: os.PathLike[str]) -> None:
    """Take back all that was written to an open file of ours."""
    _about_to("truncate", path)
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)


# --- copying bytes ---


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a new name; not durable, since nothing that must last is made this way."""
    source_fd = os.open(source, os.O_RDONLY | _CLOEXEC | _BINARY)
    try:
        _about_to("create", target)
        target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC | _BINARY, 0o600)
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
    _about_to("copy", path)
    # A reflink of a whole file replaces whatever the target holds.
    is_whole = offset == 0 and os.fstat(source).st_size == length and os.fstat(target).st_size == 0
    if is_whole and _reflink(source, target):
        os.lseek(target, 0, os.SEEK_END)
        return length
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while copied < length:
                most = min(length - copied, 1 << 30)
                step = os.copy_file_range(source, target, most, offset_src=offset + copied)
                if step == 0:
                    break
                copied += step
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    # Some file systems answer 0 instead of an error (procfs, some network ones): read what is missing, if anything.
    buffer = memoryview(bytearray(min(COPY_BYTES, max(length - copied, 1))))
    while size := read_at(source, buffer[: length - copied], offset + copied):
        write_all(target, buffer[:size])
        copied += size
    return copied


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill (part of) a buffer from a position of an open file; 0 at its end."""
    return os.preadv(fd, [buffer], offset)


def _reflink(source: int, target: int) -> bool:
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
    flags = os.O_RDONLY | _NOFOLLOW | _CLOEXEC | _BINARY | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags, dir_fd=dir_fd) if HAS_DIRECTORY_FDS else os.open(path, flags)


# --- writing below a destination that others may write to as well ---


class Folder:
    """A folder opened for writing; names below it are made relative to it and never through a link.

    Holding the folder itself, and not its path, keeps a link that somebody puts in the way from leading elsewhere
    (the class of CVE-2007-4559 and its kin). Where the system has no such calls, each step is checked with lstat.
    """

    def __init__(self, path: Path, fd: int | None) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at a path, made if missing. The path itself may be a link: it is what the caller chose."""
        with told_as(f"making the folder {path}"):
            if not path.is_dir():
                _about_to("mkdir", path)
                os.makedirs(path, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | _DIRECTORY | _CLOEXEC) if HAS_DIRECTORY_FDS else None
        return cls(path, fd)

    def enter(self, name: str, *, make: bool = True) -> Folder:
        """The folder `name` inside this one; `DestinationDiffers` if something else (a link too) stands there."""
        if make:
            _about_to("mkdir", self.path / name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._where(name), dir_fd=self._fd)
        try:
            if self._fd is not None:
                fd = os.open(name, os.O_RDONLY | _DIRECTORY | _NOFOLLOW | _CLOEXEC, dir_fd=self._fd)
                return Folder(self.path / name, fd)
            if not stat.S_ISDIR(os.lstat(self.path / name).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self.path / name))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise DestinationDiffers(
                    f"{self.path / name} is in the way: a folder is needed there, and links are not followed"
                ) from error
            raise
        return Folder(self.path / name, None)

    def above(self) -> Folder:
        """The folder that this one lies in now."""
        if self._fd is None:
            return Folder(self.path.parent, None)
        fd = os.open("..", os.O_RDONLY | _DIRECTORY | _CLOEXEC, dir_fd=self._fd)
        return Folder(self.path.parent, fd)

    @property
    def id(self) -> tuple[int, int]:
        """Which folder this is, whatever its name: device and inode."""
        found = os.stat(self._here)
        return found.st_dev, found.st_ino

    def lookup(self, name: str) -> os.stat_result | None:
        """What stands under `name` (a link itself, not its target), or None."""
        try:
            return os.stat(self._where(name), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> int:
        """A descriptor for reading the regular file `name`."""
        return open_source(self._where(name), dir_fd=self._fd)

    def read_link(self, name: str) -> str:
        """The target of the link `name`."""
        return os.readlink(self._where(name), dir_fd=self._fd)

    def list(self) -> list[str]:
        """The names in this folder, unsorted."""
        return os.listdir(self._here)

    def list_kinds(self) -> list[tuple[str, bool]]:
        """The names in this folder, unsorted, and whether each is a folder (a link is none)."""
        with os.scandir(self._here) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def create(self, name: str) -> int:
        """A descriptor of a new, empty file `name`; fails if anything stands there."""
        _about_to("create", self.path / name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC | _BINARY
        return os.open(self._where(name), flags, 0o600, dir_fd=self._fd)

    def rename(self, source: str, target: str) -> None:
        """Rename inside this folder, replacing what stands at `target` in one step."""
        _about_to("rename", self.path / target)
        os.replace(
            self._where(source), self._where(target), src_dir_fd=self._fd, dst_dir_fd=self._fd
        )

    def symlink(self, target: str, name: str) -> None:
        """Make a symbolic link `name`."""
        _about_to("symlink", self.path / name)
        os.symlink(target, self._where(name), dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove the file or link `name`."""
        _about_to("remove", self.path / name)
        os.unlink(self._where(name), dir_fd=self._fd)

    def remove_directory(self, name: str) -> None:
        """Remove the folder `name` unless something is in it."""
        _about_to("rmdir", self.path / name)
        try:
            os.rmdir(self._where(name), dir_fd=self._fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def set_mode(self, fd: int, name: str, mode: int) -> None:
        """Set the permission bits of the open file `name`; a link that was put under its name since is not followed."""
        _about_to("chmod", self.path / name)
        os.fchmod(fd, mode)

    def make_writable(self) -> None:
        """Let the owner do anything in this folder, and nobody else."""
        _about_to("chmod", self.path)
        os.chmod(self._here, 0o700)

    def sync(self) -> None:
        """Make the names in this folder durable."""
        sync_directory(self.path, fd=self._fd)

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    @property
    def _here(self) -> int | Path:
        return self.path if self._fd is None else self._fd

    def _where(self, name: str) -> str:
        return name if self._fd is not None else str(self.path / name)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
