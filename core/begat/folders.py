"""Folders that are held open while they are written to, since others may write below them as well.

Names below a folder are made relative to it and never through a link. Every change is announced to `files.fault`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from begat import files
from begat.errors import DestinationDiffers
from begat.files import BINARY, CLOEXEC, DIRECTORY, HAS_DIRECTORY_FDS, NOFOLLOW, told_as, write_all


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
                files.about_to("mkdir", path)
                os.makedirs(path, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | DIRECTORY | CLOEXEC) if HAS_DIRECTORY_FDS else None
        return cls(path, fd)

    def enter(self, name: str, *, make: bool = True) -> Folder:
        """The folder `name` inside this one; `DestinationDiffers` if something else (a link too) stands there."""
        if make:
            self._about_to("mkdir", name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._where(name), dir_fd=self._fd)
        try:
            if self._fd is not None:
                fd = os.open(name, os.O_RDONLY | DIRECTORY | NOFOLLOW | CLOEXEC, dir_fd=self._fd)
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
        fd = os.open("..", os.O_RDONLY | DIRECTORY | CLOEXEC, dir_fd=self._fd)
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
        return files.open_source(self._where(name), dir_fd=self._fd)

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

    def create(self, name: str, mode: int = 0o600) -> int:
        """A descriptor of a new, empty file `name`; fails if anything stands there."""
        self._about_to("create", name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW | CLOEXEC | BINARY
        return os.open(self._where(name), flags, mode, dir_fd=self._fd)

    def put(
        self, name: str, data: bytes | memoryview, *, temporary: str, mode: int, exactly: bool
    ) -> None:
        """A file `name` with these bytes, in one step: under another name until it is complete.

        `exactly`: whatever the umask of the process takes away is given back.
        """
        try:
            fd = self.create(temporary, mode)
            try:
                self._about_to("write", temporary)
                write_all(fd, data)
                if exactly and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                    self.set_mode(fd, temporary, mode)
            finally:
                os.close(fd)
            self.rename(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise

    def rename(self, source: str, target: str) -> None:
        """Rename inside this folder, replacing what stands at `target` in one step."""
        self._about_to("rename", target)
        os.replace(
            self._where(source), self._where(target), src_dir_fd=self._fd, dst_dir_fd=self._fd
        )

    def symlink(self, target: str, name: str) -> None:
        """Make a symbolic link `name`."""
        self._about_to("symlink", name)
        os.symlink(target, self._where(name), dir_fd=self._fd)

    def link(self, source: Path, name: str) -> None:
        """Make `name` a second name of a file; fails if anything stands there."""
        self._about_to("link", name)
        os.link(source, self._where(name), dst_dir_fd=self._fd, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove the file or link `name`."""
        self._about_to("remove", name)
        os.unlink(self._where(name), dir_fd=self._fd)

    def remove_directory(self, name: str) -> None:
        """Remove the folder `name` unless something is in it."""
        self._about_to("rmdir", name)
        try:
            os.rmdir(self._where(name), dir_fd=self._fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def set_mode(self, fd: int, name: str, mode: int) -> None:
        """Set the permission bits of the open file `name`; a link that was put under its name since is not followed."""
        self._about_to("chmod", name)
        os.fchmod(fd, mode)

    def make_writable(self) -> None:
        """Let the owner do anything in this folder, and nobody else."""
        self._about_to("chmod")
        os.chmod(self._here, 0o700)

    def sync(self) -> None:
        """Make the names in this folder durable."""
        files.sync_directory(self.path, fd=self._fd)

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _about_to(self, operation: str, name: str = "") -> None:
        # Making the path costs more than the operation: it is made for those who asked only.
        if files.fault is not None:
            files.fault(operation, str(self.path / name))

    @property
    def _here(self) -> int | Path:
        return self.path if self._fd is None else self._fd

    def _where(self, name: str) -> str:
        return name if self._fd is not None else str(self.path / name)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
