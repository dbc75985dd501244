"""What callbacks have taken in and not committed yet: a journal on disk, and how a kill is made up for.

    staging/<recorder>/lock        held by its process for as long as that lives
    staging/<recorder>/journal     one line for each step: the CRC-32 of its JSON in hex, a blank, the JSON
    staging/<recorder>/<token>/    the files of one version to come, by number

    staged -> (sealed) -> shipped | lost       a version on its way; its token names it for good
    pointed, retired   -> done                 what is to become of it once it is there: an alias, its removal

A line `staged` is written when the files are complete, and nothing is fsynced: it survives its process, not the boot.
`sealed` is written when they are durable and their digests known, which is done where shipping has to wait. Whoever
holds the lock may go on: the process itself, or `begat sync` after it has died. Every step may be done twice.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from begat import files
from begat.blobs import hash_fd
from begat.errors import SourceChanged
from begat.folders import Folder
from begat.identity import Digest, new_uid
from begat.listing import LocalFile, Planned, Source
from begat.locks import FileLock
from begat.model import EmptyDirectory, Symlink
from begat.process import current_boot
from begat.removing import remove_tree

STAGING = "staging"
JOURNAL = "journal"
LOCK = "lock"


# --- lines: read from a disk that others may write to, so whatever becomes part of a path is checked ---

_ID = r"\A[A-Za-z0-9-]{1,64}\Z"
_Id: TypeAlias = Annotated[str, msgspec.Meta(pattern=_ID)]
_Number: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,9}\Z")]


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """One path of a staged version: a file by its number, a symbolic link, or an empty folder.

    `linked` is (inode, size in bytes, mtime_ns) of a file that is staged as a second name of the user's file.
    """

    path: str
    file: _Number | None = None
    is_executable: bool = False
    linked: tuple[int, int, int] | None = None
    target: str | None = None
    size_bytes: int = 0


class _Line(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="step", kw_only=True):
    id: _Id


class Staged(_Line, frozen=True, tag="staged"):
    """The files of a version to come are here, complete; `id` is its token. `at` is microseconds since 1970 UTC."""

    at: int
    boot: str
    name: str
    type: str | None
    pieces: tuple[Piece, ...]
    metadata: dict[str, Any] = {}
    aliases: tuple[str, ...] = ()
    run: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(piece.size_bytes for piece in self.pieces)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(piece.path for piece in self.pieces[:3]) or 'empty'})"


class Pointed(_Line, frozen=True, tag="pointed"):
    """An alias is to move to the version with a token."""

    at: int
    token: str
    alias: str
    run: str | None = None

    def __str__(self) -> str:
        return f"the alias {self.alias}"


class Retired(_Line, frozen=True, tag="retired"):
    """The version with a token is gone where it came from; not if the one with `unless` is the same version."""

    token: str
    unless: str | None = None

    def __str__(self) -> str:
        return "a version that was removed"


class Sealed(_Line, frozen=True, tag="sealed"):
    """The staged files are durable, with these digests."""

    digests: tuple[str, ...]


class Shipped(_Line, frozen=True, tag="shipped"):
    """The version is committed."""

    version: str


class Done(_Line, frozen=True, tag="done"):
    """An alias was moved, or a version retired."""


class Lost(_Line, frozen=True, tag="lost"):
    """The step can never be done."""

    why: str


Step: TypeAlias = Staged | Pointed | Retired
Line: TypeAlias = Step | Sealed | Shipped | Done | Lost

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


# --- one journal ---


class Journal:
    """The journal of one recorder, held by its lock: what is pending, in order."""

    def __init__(self, folder: Path, lock: FileLock, *, is_inherited: bool = False) -> None:
        self.folder = folder
        self.is_inherited = is_inherited
        self.pending: dict[str, Step] = {}
        self.digests: dict[str, tuple[str, ...]] = {}
        self.unreadable_lines = 0
        self._lock = lock
        self._writing = threading.Lock()

    @classmethod
    def begin(cls, staging: Path) -> Journal:
        """A new journal of this process."""
        name = new_uid()
        # Made and locked under a name that nobody takes over, so that it is never seen without its owner.
        making = staging / f".{name}"
        lock = FileLock(making / LOCK)
        with files.told_as("making a journal in the store"):
            lock.acquire("exclusive")
            files.rename(making, staging / name)
            files.sync_directory(staging)
        return cls(staging / name, lock)

    @classmethod
    def take_over(cls, folder: Path) -> Journal | None:
        """The journal of a process that has died, or None while it lives."""
        lock = FileLock(folder / LOCK)
        if not lock.acquire("exclusive", deadline_s=time.monotonic()):
            lock.release()
            return None
        journal = cls(folder, lock, is_inherited=True)
        for line in read_lines(folder / JOURNAL):
            if line is None:
                journal.unreadable_lines += 1
            else:
                journal._apply(line)
        return journal

    def add(self, step: Step) -> None:
        """Note a step that is to be done."""
        self._write(step, durable=False)

    def stage(
        self,
        name: str,
        plan: Sequence[Planned],
        *,
        token: str,
        type: str | None,
        metadata: dict[str, Any],
        aliases: Sequence[str],
        run: str | None,
        may_link: bool,
    ) -> Staged:
        """Take files in: shared with the original where the file system can, linked where that is safe, else copied.

        Raises `SourceChanged` for a file that changes while it is copied, `StoreFull`.
        """
        if not re.match(_ID, token):
            raise TypeError(f"a token is letters, digits and '-', 64 at most, not {token!r}")
        item = self.folder / token
        try:
            with files.told_as(f"taking in {name}"), Folder.at(item):
                pieces = tuple(
                    _take(planned, item / str(i), may_link=may_link)
                    for i, planned in enumerate(plan)
                )
            staged = Staged(
                id=token,
                at=time.time_ns() // 1000,
                boot=current_boot(),
                name=name,
                type=type,
                pieces=pieces,
                metadata=metadata,
                aliases=tuple(aliases),
                run=run,
            )
            self._write(staged, durable=False)
        except BaseException:
            self._remove(token)
            raise
        return staged

    def seal(self, staged: Staged) -> None:
        """Make the staged files durable and note their digests; `SourceChanged` if a linked one is another now."""
        if staged.id in self.digests:
            return
        item = self.folder / staged.id
        digests: list[str] = []
        with files.told_as(f"sealing {staged}"):
            for piece in staged.pieces:
                if piece.file is not None:
                    digests.append(_sealed(piece, item / piece.file))
            files.sync_directory(item)
            files.sync_directory(self.folder)
        self._write(Sealed(id=staged.id, digests=tuple(digests)), durable=True)

    def done(self, step: Step, version_uid: str | None = None) -> None:
        """Note that a step was done, and let go of its files."""
        line = Done(id=step.id) if version_uid is None else Shipped(id=step.id, version=version_uid)
        self._write(line, durable=False)
        self._remove(step.id)

    def lost(self, step: Step, why: str) -> None:
        """Note that a step can never be done, and let go of its files."""
        self._write(Lost(id=step.id, why=why), durable=False)
        self._remove(step.id)

    def plan(self, staged: Staged) -> list[Planned]:
        """What the version is made of."""
        item = self.folder / staged.id
        return [Planned(piece.path, _source(piece, item)) for piece in staged.pieces]

    def close(self) -> None:
        """Let go of the journal; with nothing pending its folder goes too."""
        try:
            if not self.pending:
                with files.told_as("removing an empty journal"):
                    remove_tree(self.folder)
        finally:
            self._lock.release()

    def _write(self, line: Line, *, durable: bool) -> None:
        with self._writing, files.told_as("writing to the journal"):
            files.append_line(self.folder / JOURNAL, encoded(line), durable=durable)
            self._apply(line)

    def _apply(self, line: Line) -> None:
        if isinstance(line, Staged | Pointed | Retired):
            self.pending[line.id] = line
        elif isinstance(line, Sealed):
            self.digests[line.id] = line.digests
        else:
            self.pending.pop(line.id, None)

    def _remove(self, token: str) -> None:
        # Whether it goes now or with the journal is all the same.
        try:
            remove_tree(self.folder / token)
        except OSError:
            pass


def encoded(line: Line) -> bytes:
    """One line of a journal, with its check: a flipped bit in a name would still be JSON, of another version."""
    body = msgspec.json.encode(line)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read_lines(path: Path) -> Generator[Line | None]:
    """The lines of a journal; None for one that a kill tore, that is damaged, or that a newer begat wrote."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        if not line:
            continue
        check, _, body = line.partition(b" ")
        try:
            yield _decoder.decode(body) if check == b"%08x" % zlib.crc32(body) else None
        except msgspec.MsgspecError:
            yield None


# --- taking in ---


def _take(planned: Planned, target: Path, *, may_link: bool) -> Piece:
    source = planned.source
    if isinstance(source, Symlink):
        return Piece(planned.path, target=source.target)
    if not isinstance(source, LocalFile):
        return Piece(planned.path)
    path = Path(source.path)
    before = os.stat(path)
    linked = _link(path, target) if may_link else None
    if linked is None:
        files.copy_file(path, target)
        after = os.stat(path)
        if _identity(before) != _identity(after) or target.stat().st_size != after.st_size:
            raise SourceChanged(
                f"{path} changed while it was taken in; no version will be made of it. Save it again"
            )
    return Piece(
        planned.path,
        file=target.name,
        is_executable=source.is_executable,
        linked=linked,
        size_bytes=before.st_size,
    )


def _link(path: Path, target: Path) -> tuple[int, int, int] | None:
    try:
        files.hard_link(path, target)
    except OSError:  # another file system, or one without links
        return None
    return _identity(os.stat(target))


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_link(piece: Piece, path: Path) -> None:
    """Raise `SourceChanged` if a file that is staged as a second name was written to since."""
    if piece.linked is not None and _identity(os.stat(path)) != piece.linked:
        raise SourceChanged(
            f"{piece.path!r} was written to in place after it was saved, so what was saved is gone. "
            "Nothing else is lost; save each checkpoint to a path of its own"
        )


def _sealed(piece: Piece, path: Path) -> str:
    check_link(piece, path)
    digest = digest_of_file(path, durable=True)
    check_link(piece, path)
    return digest


def digest_of_file(path: Path, *, durable: bool = False) -> Digest:
    """The digest of a staged file; with `durable` its bytes survive a power cut from now on."""
    fd = files.open_source(path)
    try:
        digest = hash_fd(fd)
        if durable:
            files.sync_file(fd, path)
        return digest
    finally:
        os.close(fd)


def _source(piece: Piece, item: Path) -> Source:
    if piece.file is not None:
        return LocalFile(
            str(item / piece.file),
            piece.size_bytes,
            piece.is_executable,
            is_staged=piece.linked is None,
        )
    if piece.target is not None:
        return Symlink(piece.path, piece.target)
    return EmptyDirectory(piece.path)
