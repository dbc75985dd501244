"""A commit on the Hub becomes a version: pinned, every file checked, and the same commit always the same version."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

from huggingface_hub.hf_api import RepoFile

import begat
from begat.errors import DigestMismatch, NotFound
from begat_huggingface.card import CARD, NOTE, Note, note_of, parse_note, without_block
from begat_huggingface.hub import Hub, NoRepository, RepoType, is_same_file
from begat_huggingface.push import BRANCH, change_for

# How the Hub stores files is no content.
HUB_FILES = frozenset({".gitattributes"})


def pull_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: RepoType = "dataset",
    name: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    allow_edited: bool = False,
) -> begat.Version:
    """The version that a commit on the Hub is; made if the store does not have it yet, else `is_new` is False.

    `revision` is a branch, a tag (`v3`) or a commit, by default `main`; the commit that it means is kept in the
    metadata, under `huggingface`. `name` is by default what the version was called where it was pushed from, else the
    repository's. A version that begat pushed comes back as it was, with its metadata; of another repository all files
    are taken but `.gitattributes`. Files are downloaded into the cache of huggingface_hub, or into `cache_dir`.

    The active run made what is new, and used what was there. Raises `DigestMismatch` if the files are not those that
    begat pushed (`allow_edited=True` takes what is there, as the Hub's), `NotFound`, `AccessDenied`, `Unavailable`.
    """
    hub = Hub(repo_id, repo_type, token)
    commit = _commit(hub, revision or BRANCH)
    there = hub.files(commit)
    note = parse_note(hub.read(NOTE, commit)) if NOTE in there else None
    name = name or (note.name if note is not None else repo_id.rpartition("/")[2])
    known = _known(hub, name, commit, there, note)
    if known is not None:
        return begat.use_artifact(known)
    with tempfile.TemporaryDirectory(prefix="begat-pull-") as aside:
        pull = _Pull(hub, commit, there, Path(aside), cache_dir)
        if note is None:
            return begat.log_artifact(pull.draft(name, leave_out=HUB_FILES))
        try:
            return begat.log_artifact(pull.draft_of(note, name))
        except DigestMismatch as error:
            if not allow_edited:
                raise DigestMismatch(
                    f"{hub.name} at {commit} does not hold what {NOTE} says ({note.ref}, {note.digest[:11]}): it was "
                    f"changed after begat pushed it, and no version was made. revision='v{note.number}' is what was "
                    "pushed; allow_edited=True takes what is there"
                ) from error
            return begat.log_artifact(pull.draft(name, leave_out={*HUB_FILES, NOTE}))


class _Pull:
    """The files of one commit, downloaded and checked, as drafts of versions."""

    def __init__(
        self,
        hub: Hub,
        commit: str,
        there: Mapping[str, RepoFile],
        aside: Path,
        cache_dir: str | PathLike[str] | None,
    ) -> None:
        self.hub = hub
        self.commit = commit
        self.aside = aside
        self.paths = tuple(there)
        for path in self.paths:
            # Whatever a server lists becomes a path on this disk: none may lead out.
            begat.Artifact("check").add(b"", path)
        got = hub.call(
            "downloading",
            hub.api.snapshot_download,
            revision=commit,
            cache_dir=cache_dir,
            max_workers=4,
        )
        self.folder = Path(got)
        for path in self.paths:
            self._check(path, there[path])

    def draft(self, name: str, *, leave_out: Collection[str]) -> begat.Artifact:
        """All that is there, as the Hub has it."""
        draft = begat.Artifact(name, self.hub.repo_type, metadata={"huggingface": self._origin()})
        for path in self.paths:
            if path not in leave_out:
                draft.add(self._file(path), path)
        return draft

    def draft_of(self, note: Note, name: str) -> begat.Artifact:
        """The version that begat pushed; logging it raises `DigestMismatch` unless it comes to the same content."""
        origin = self._origin(version=note.ref, made_by=note.made_by, used=list(note.used))
        draft = begat.Artifact(
            name,
            note.type,
            metadata={**note.metadata, "huggingface": origin},
            expected_digest=note.digest,
        )
        for path in note.files:
            if path not in self.paths:
                continue  # the digest will tell
            what = self._card(note) if path == CARD else self._file(path)
            if path in note.executables:
                what = self._executable(what, path)
            draft.add(what, path, metadata=note.entry_metadata.get(path))
        draft.keep(_others(note))
        return draft

    def _check(self, path: str, remote: RepoFile) -> None:
        file = self.folder / path
        if not file.is_file() or not is_same_file(file, remote):
            raise DigestMismatch(
                f"{file} is not what {self.hub.name} has at {self.commit}; no version was made. Remove it from the "
                "cache of huggingface_hub, and pull again"
            )

    def _file(self, path: str) -> Path | bytes:
        # The cache holds links to its files, and what is behind the link is meant.
        return (self.folder / path).resolve()

    def _card(self, note: Note) -> bytes:
        if note.readme is not None:
            return note.readme.encode()
        data = (self.folder / CARD).read_bytes()
        with contextlib.suppress(UnicodeDecodeError):
            return without_block(data.decode()).encode()
        return data

    def _executable(self, what: Path | bytes, path: str) -> Path:
        copy = self.aside / str(self.paths.index(path))
        if isinstance(what, bytes):
            copy.write_bytes(what)
        else:
            shutil.copyfile(what, copy)
        copy.chmod(0o755)
        return copy

    def _origin(self, **more: Any) -> dict[str, Any]:
        said = {key: value for key, value in more.items() if value}
        hub = self.hub
        return {"repo_id": hub.repo_id, "repo_type": hub.repo_type, "commit": self.commit, **said}


def _others(note: Note) -> Iterator[begat.Entry]:
    """What the Hub cannot hold, from begat.json; each is checked when the draft is logged."""
    for path, target in note.symlinks.items():
        yield begat.Symlink(path, target, note.entry_metadata.get(path))
    for path in note.empty_directories:
        yield begat.EmptyDirectory(path, note.entry_metadata.get(path))
    for path, asset in note.remote.items():
        kept = note.entry_metadata.get(path)
        begat.Artifact("check").add_remote(asset.uri, path, sync=False)  # refuses secrets
        yield begat.RemoteAsset(path, asset.uri, asset.size_bytes, asset.pin, kept)


def _commit(hub: Hub, revision: str) -> str:
    try:
        commit = hub.find_commit(revision)
    except NoRepository as error:
        hint = hub.hint_of_other_type()
        raise NotFound(f"{error.message}{hint} Nothing was stored") from None
    if commit is not None:
        return commit
    refs = hub.call("listing its tags", hub.api.list_repo_refs)
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    raise NotFound(
        f"{hub.name} has no revision {revision!r}; it has {', '.join(names[-10:])}. Nothing was stored"
    )


def _known(
    hub: Hub, name: str, commit: str, there: Mapping[str, RepoFile], note: Note | None
) -> begat.Version | None:
    """The version that was pulled from this commit before, or that this store pushed to it."""
    try:
        versions = reversed(_store().versions(name))
    except NotFound:
        return None
    for version in versions:
        if version.state != "live":
            continue
        origin = version.metadata.get("huggingface")
        if isinstance(origin, dict) and (
            (origin.get("repo_id"), origin.get("repo_type"), origin.get("commit"))
            == (hub.repo_id, hub.repo_type, commit)
        ):
            return version
        if note is not None and (version.uid, version.digest) == (note.uid, note.digest):
            if _is_still_there(version, hub, commit, there):
                return version
    return None


def _store() -> begat.Store:
    """The store that `begat.log_artifact` would log to."""
    run = begat.active_run()
    return begat.default_store() if run is None else cast("begat.Store", run.home)


def _is_still_there(
    version: begat.Version, hub: Hub, commit: str, there: Mapping[str, RepoFile]
) -> bool:
    """Whether a commit holds the files of a version: it may have been changed by hand since it was pushed."""
    note = note_of(version)
    change = change_for(version, note, hub, commit, there)
    ours = {NOTE} if CARD in note.files else {NOTE, CARD}
    return not {*change.add, *change.delete} - ours
