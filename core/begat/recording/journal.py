"""Steps of a journal are carried out: at once by the worker of a recorder, or later by `begat sync` after a kill.

Each may be done twice: a version is known by its token, and an alias or a state that is there already stays so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from begat.errors import (
    AliasReserved,
    BadInput,
    BegatError,
    Corrupt,
    NotFound,
    ObjectMissing,
    RunNotFound,
    SourceChanged,
    TypeMismatch,
    VersionExists,
)
from begat.model import RunRecord
from begat.process import current_boot
from begat.publish import Publication
from begat.recording.staging import (
    STAGING,
    Journal,
    Pointed,
    Staged,
    Step,
    check_link,
    digest_of_file,
)
from begat.store import Store
from begat.version import Version

# A framework that removes its file while it is read changes the inode that a hard link shares, though not the bytes.
READS_OF_A_LINK = 5
# What no waiting mends: the files, names or labels themselves are not accepted, or what a label was for is gone.
_HOPELESS = (AliasReserved, BadInput, Corrupt, NotFound, TypeMismatch, VersionExists)


def carry_out(step: Step, journal: Journal, store: Store) -> Version | None:
    """Do one step, and note it in the journal; the version that was shipped, if it is one.

    Raises what logging raises; the step stays pending then.
    """
    if isinstance(step, Staged):
        version = _ship(step, journal, store)
        journal.done(step, version.uid)
        return version
    known = store.catalog.commits.find_token(step.token)
    if known is None:
        journal.lost(step, "its version was never stored")
        return None
    if isinstance(step, Pointed):
        if not _has_moved_on(step.alias, known.version.name, step, journal, store):
            store.catalog.labels.move_alias(
                known.version.uid, step.alias, by=store.user, run_uid=step.run
            )
    else:
        other = store.catalog.commits.find_token(step.unless) if step.unless else None
        if other is None or other.version.uid != known.version.uid:
            store.catalog.labels.retire(known.version.uid, by=store.user)
    journal.done(step)
    return None


def _ship(staged: Staged, journal: Journal, store: Store) -> Version:
    known = store.catalog.commits.find_token(staged.id)
    if known is not None:  # a kill between the commit and the line that says so
        return store.version_of(known.version)
    if journal.is_inherited:
        _check_inherited(staged, journal)
    what = Publication(
        name=staged.name,
        type=staged.type,
        plan=journal.plan(staged),
        metadata=staged.metadata,
        aliases=tuple(
            alias
            for alias in staged.aliases
            if not _has_moved_on(alias, staged.name, staged, journal, store)
        ),
        run=_run(staged, store),
        created_by=store.user,
        token=staged.id,
        is_late=True,
    )
    item = journal.folder / staged.id
    reads = 0
    while True:
        for piece in staged.pieces:
            if piece.file is not None:
                check_link(piece, item / piece.file)
        try:
            return store.publish(what)
        except SourceChanged:
            reads += 1
            if reads == READS_OF_A_LINK or not any(piece.linked for piece in staged.pieces):
                raise


def _run(staged: Staged, store: Store) -> RunRecord | None:
    try:
        return None if staged.run is None else store.catalog.runs.get(staged.run)
    except RunNotFound:  # the catalog was made anew since
        return None


def _check_inherited(staged: Staged, journal: Journal) -> None:
    """Raise `Corrupt` unless the files are what was staged, as far as that can be known."""
    item = journal.folder / staged.id
    sealed = journal.digests.get(staged.id)
    if sealed is None and not (staged.boot and staged.boot == current_boot()):
        raise Corrupt(
            f"{staged} was taken in before this machine was started again, and not yet made durable"
        )
    numbered = [piece for piece in staged.pieces if piece.file is not None]
    for i, piece in enumerate(numbered):
        path = item / str(piece.file)
        if not path.is_file() or path.stat().st_size != piece.size_bytes:
            raise Corrupt(f"the staged file of {staged} is not there any more, or not whole")
        if sealed is not None and digest_of_file(path) != sealed[i]:
            raise Corrupt(f"the staged file of {staged} holds other bytes than were sealed")


def _has_moved_on(
    alias: str, name: str, step: Staged | Pointed, journal: Journal, store: Store
) -> bool:
    """Whether somebody else moved an alias after a process, which has died since, wanted it for its version."""
    if not journal.is_inherited:
        return False
    try:
        moves = store.catalog.labels.alias_history(name, alias)
    except NotFound:
        return False
    return any(move.at > step.at and move.run_uid != step.run for move in moves)


# --- what a kill left ---


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `sync` came to: references of the versions it stored, and in words what is lost and what waits."""

    shipped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


def sync(store: Store) -> SyncReport:
    """Store what processes that died had taken in; what belongs to a living process is left to it.

    Sealed versions always, staged ones if the machine was not started again since. What can never be stored is named
    as lost, what cannot be stored now as pending, and why.
    """
    shipped: list[str] = []
    lost: list[str] = []
    pending: list[str] = []
    for folder in _journals(store):
        journal = Journal.take_over(folder)
        if journal is None:
            continue
        if journal.unreadable_lines:
            lost.append(
                f"{journal.unreadable_lines} line(s) of the journal {folder.name} cannot be read (torn by a kill, or "
                "damaged), so what they told of is not stored unless it is named elsewhere"
            )
        try:
            for step in list(journal.pending.values()):
                try:
                    version = carry_out(step, journal, store)
                except BegatError as error:
                    if may_succeed_later(error):
                        pending.append(f"{step}: {error}")
                        break  # the steps after it rely on it
                    journal.lost(step, str(error))
                    if isinstance(step, Staged):
                        lost.append(f"{step}: {error}")
                else:
                    if version is not None:
                        shipped.append(version.ref)
        finally:
            journal.close()
    return SyncReport(tuple(shipped), tuple(lost), tuple(pending))


def may_succeed_later(error: Exception) -> bool:
    """Whether a step that failed is worth another try: the store may be reachable, writable or mended by then."""
    return isinstance(error, ObjectMissing) or not isinstance(error, _HOPELESS)


def _journals(store: Store) -> list[Path]:
    try:
        with os.scandir(store.path / STAGING) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
    except FileNotFoundError:
        return []
