"""A version becomes a commit on the Hub, with a tag: only what differs is sent, and only what arrived is tagged."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile

import begat
from begat.errors import BadInput, BadPath, Refused
from begat_huggingface.card import (
    CARD,
    NOTE,
    Note,
    bytes_of_note,
    new_card,
    note_of,
    parse_note,
    with_block,
    without_block,
)
from begat_huggingface.hub import Hub, Raced, RepoType, is_same_file

BRANCH = "main"
# Before each attempt: someone else was faster. Five times in a row, and the user should know.
RACE_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class PushedVersion:
    """Where a version is on the Hub; `is_new` is False if it was there already, and nothing was sent.

    `oid` and `commit_url` are called as in huggingface_hub's `CommitInfo`.
    """

    ref: str
    repo_id: str
    repo_type: RepoType
    oid: str
    tag: str
    commit_url: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit must do, so that the repository holds a version."""

    add: Mapping[str, Path | bytes]
    delete: tuple[str, ...]


def push_to_hub(
    ref: str | begat.Version,
    repo_id: str,
    *,
    repo_type: RepoType | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> PushedVersion:
    """Put a version into a repository on the Hub as one commit with the tag `v<N>`, and return where it is.

    Only files that differ are sent. What an earlier version left and this one does not have is deleted; files that
    begat did not push stay, and so does the card but for a block `begat` in its front matter. Pushing a version that
    has its tag already changes nothing. `repo_type` is by default "model" for versions of type `model`, else
    "dataset". A repository that does not exist is made, private if `private`. Metadata and lineage become as public
    as the repository. Nothing is recorded in the store.

    Raises `Refused` if the tag stands for another version, others kept changing the repository, or it is public and
    was to be private; `AccessDenied`, `Unavailable`, `BadPath`, `BadInput`, and what a reference raises.
    """
    version = ref if isinstance(ref, begat.Version) else begat.get_artifact(ref)
    kind = repo_type or ("model" if version.type == "model" else "dataset")
    hub = Hub(repo_id, kind, token)
    if "/" not in repo_id:
        raise BadInput(f"say whose repository it is: 'owner/{repo_id}', not {repo_id!r}")
    push = _Push(hub, version)
    for wait_s in RACE_WAITS_S:
        if wait_s:
            time.sleep(wait_s)
        try:
            return push.attempt(private)
        except Raced:
            continue
    raise Refused(
        f"{hub.name} was changed by others {len(RACE_WAITS_S)} times while {version.ref} was pushed; it has no tag "
        f"{push.tag}. Try again"
    )


class _Push:
    def __init__(self, hub: Hub, version: begat.Version) -> None:
        self.hub = hub
        self.version = version
        self.note = note_of(version)
        self.tag = f"v{version.number}"
        _check_can_be_pushed(self.note, hub.name)

    def attempt(self, private: bool | None) -> PushedVersion:
        """Look at the repository and do what is missing; `Raced` if it changed meanwhile."""
        head = self._head(private)
        tagged = self.hub.find_commit(self.tag)
        if tagged is not None:
            return self._check_tagged(tagged)
        there = self.hub.files(head)
        change = change_for(self.version, self.note, self.hub, head, there)
        oid = head
        if change.add or change.delete:
            oid = self._commit(change, head)
            there = self.hub.files(oid)
            self._check_arrived(change, there, oid)
        # A commit with this tag can be there by now, if someone pushed the same version at the same time.
        self.hub.call("setting its tag", self.hub.api.create_tag, tag=self.tag, revision=oid)
        return self._pushed(oid, is_new=True)

    def _head(self, private: bool | None) -> str:
        is_private = self.hub.is_private()
        if is_private is None:
            self.hub.call("making it", self.hub.api.create_repo, private=private, exist_ok=True)
        elif private and not is_private:
            raise Refused(
                f"{self.hub.name} is public, and {self.note.ref} was to be private; nothing was pushed. Make the "
                "repository private in its settings, or use another one"
            )
        head = self.hub.find_commit(BRANCH)
        if head is None:
            raise Refused(f"{self.hub.name} has no branch {BRANCH}; nothing was pushed")
        return head

    def _check_tagged(self, commit: str) -> PushedVersion:
        there = self.hub.files(commit)
        known = parse_note(self.hub.read(NOTE, commit)) if NOTE in there else None
        mine = self.note
        if known is not None and (
            known.uid == mine.uid
            or (known.name, known.digest, known.metadata) == (mine.name, mine.digest, mine.metadata)
        ):
            return self._pushed(commit, is_new=False)
        what = "something else" if known is None else f"{known.ref} ({known.digest[:11]})"
        raise Refused(
            f"the tag {self.tag} of {self.hub.name} stands for {what}, not for {mine.ref} ({mine.digest[:11]}). "
            "Nothing was pushed; use another repository"
        )

    def _commit(self, change: Change, head: str) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path) for path in change.delete
        ]
        for path, source in change.add.items():
            try:
                operations.append(CommitOperationAdd(path, source))
            except ValueError as error:
                raise BadPath(f"the Hub takes no file {path!r}: {error}") from error
        done = self.hub.call(
            "committing",
            self.hub.api.create_commit,
            operations=operations,
            commit_message=f"begat: {self.note.ref}",
            commit_description=f"{self.note.digest}",
            revision=BRANCH,
            parent_commit=head,
        )
        return done.oid

    def _check_arrived(self, change: Change, there: Mapping[str, RepoFile], oid: str) -> None:
        """Nothing is tagged that is not whole: the Hub leaves out what a `.gitignore` names, without a word."""
        missing = [
            path
            for path, source in change.add.items()
            if path not in there or not is_same_file(source, there[path])
        ]
        if missing:
            raise Refused(
                f"the commit {oid} of {self.hub.name} lacks {missing[0]!r}"
                f"{f' and {len(missing) - 1} more' if missing[1:] else ''}, so it got no tag. A .gitignore in the "
                "repository may name it"
            )

    def _pushed(self, oid: str, *, is_new: bool) -> PushedVersion:
        hub = self.hub
        prefix = "datasets/" if hub.repo_type == "dataset" else ""
        url = hub.clean(f"{hub.api.endpoint}/{prefix}{hub.repo_id}/commit/{oid}")
        ref = self.note.ref
        return PushedVersion(ref, hub.repo_id, hub.repo_type, oid, self.tag, url, is_new)


def change_for(
    version: begat.Version, note: Note, hub: Hub, commit: str, there: Mapping[str, RepoFile]
) -> Change:
    """What is different between a version and a commit, by the digests that the Hub tells."""
    folder = version.path
    wanted: dict[str, Path | bytes] = {path: folder / path for path in note.files}
    card = _text(folder / CARD) if CARD in wanted else None
    if card is not None and without_block(with_block(card, note)) != card:
        # So that pulling gives the very same bytes.
        note = msgspec.structs.replace(note, readme=card)
    if card is None:
        card = _decoded(hub.read(CARD, commit)) if CARD in there else new_card(note, hub.repo_id)
    wanted[CARD] = with_block(card, note).encode()
    wanted[NOTE] = bytes_of_note(note)
    before = parse_note(hub.read(NOTE, commit)) if NOTE in there else None
    add = {
        path: source
        for path, source in wanted.items()
        if path not in there or not is_same_file(source, there[path])
    }
    left = before.files if before is not None else ()
    return Change(add, tuple(path for path in left if path in there and path not in wanted))


def _check_can_be_pushed(note: Note, where: str) -> None:
    if NOTE in (*note.files, *note.symlinks):
        raise BadPath(
            f"{note.ref} has a file {NOTE!r}, which is where begat describes versions on the Hub; nothing was pushed"
        )
    for path, asset in note.remote.items():
        if asset.uri.startswith("file:"):
            raise BadInput(
                f"{path!r} of {note.ref} is {asset.uri}, a file of this machine, and would mean nothing in {where}; "
                "nothing was pushed. Log the file itself"
            )
        # What was let into the store with allow_secrets=True must not leave it.
        begat.Artifact(note.name).add_remote(asset.uri, path, sync=False)


def _text(path: Path) -> str:
    return _decoded(path.read_bytes())


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{CARD} is not UTF-8, which a card on the Hub must be; nothing was pushed"
        ) from error
