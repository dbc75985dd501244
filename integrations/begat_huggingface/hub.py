"""Calls to the Hub: retried a bounded number of times, failures told as begat's errors, no secret in any of them."""

# huggingface_hub decorates its functions in ways that types do not pass.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import errno
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

import begat
from begat.errors import AccessDenied, BadInput, BegatError, NotFound, Refused, Unavailable

RepoType = Literal["dataset", "model"]
T = TypeVar("T")

# Between the tries of one call. Most of huggingface_hub's own calls try five times before they give up for us.
WAITS_S = (1.0, 2.0, 4.0)
# A Hub that asks for more time than this has a user who would rather be told.
MOST_WAIT_S = 60.0

_FULL = (errno.ENOSPC, errno.EDQUOT)

_TOKEN = re.compile(r"\b(?:(?:hf|api_org)_\w{4,}|(?:Basic|Bearer) \S+)")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(\bhttps?://[^\s?'\"<>]+)\?[^\s'\"<>]+")


class Raced(Refused):
    """Someone else changed the repository since we looked at it."""


class Hub:
    """One repository on the Hub."""

    def __init__(self, repo_id: str, repo_type: str, token: str | bool | None) -> None:
        if repo_type not in ("dataset", "model"):
            raise TypeError(f"repo_type is 'dataset' or 'model', not {repo_type!r}")
        self._secrets = [text for text in (token, huggingface_hub.get_token()) if text]
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            text = self.clean(error)
        else:
            text = None
        if text is not None:  # outside, so that the error with a secret in it is not chained
            raise BadInput(f"this is no name of a repository on the Hub: {text}")
        self.repo_id = repo_id
        self.repo_type: RepoType = repo_type
        self.api = HfApi(token=token, library_name="begat", library_version=begat.__version__)

    @property
    def name(self) -> str:
        """`dataset me/digits`, for messages."""
        return f"{self.repo_type} {self.repo_id}"

    # --- what is there ---

    def is_private(self) -> bool | None:
        """Whether only some may see it; None if there is no such repository, as far as we may see."""
        try:
            return bool(self.call("looking for it", self.api.repo_info).private)
        except NoRepository:
            return None

    def find_commit(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit means; None if the repository has no such revision."""
        try:
            info = self.call("looking for it", self.api.repo_info, revision=revision)
        except _NoRevision:
            return None
        return info.sha

    def files(self, commit: str) -> dict[str, RepoFile]:
        """All files of a commit by path, as the Hub lists them."""

        def listed(**arguments: Any) -> list[Any]:
            return list(self.api.list_repo_tree(recursive=True, **arguments))

        found = self.call("listing its files", listed, revision=commit)
        return {one.path: one for one in found if isinstance(one, RepoFile)}

    def read(self, path: str, commit: str) -> bytes:
        """All bytes of one small file; they are kept nowhere."""
        with tempfile.TemporaryDirectory(prefix="begat-hub-") as folder:
            got = self.call(
                f"reading {path}",
                self.api.hf_hub_download,
                filename=path,
                revision=commit,
                local_dir=folder,
            )
            return Path(got).read_bytes()

    def hint_of_other_type(self) -> str:
        """What to say of a repository that is not there, if one of the other type is."""
        other = "model" if self.repo_type == "dataset" else "dataset"
        try:
            self.api.repo_info(self.repo_id, repo_type=other)
        except Exception:  # noqa: BLE001  it is only a hint
            return ""
        return f" There is a {other} of this name: repo_type={other!r}."

    # --- calling ---

    def call(self, doing: str, act: Callable[..., T], **arguments: Any) -> T:
        """What a method of `HfApi` gives; tried again while the Hub or the network is at fault.

        Raises `AccessDenied`, `NotFound`, `Raced` (409, 412), `Unavailable`, or `Refused` for what else it says.
        """
        where = {"repo_id": self.repo_id, "repo_type": self.repo_type}
        waits_s = iter(WAITS_S)
        while True:
            try:
                return act(**where, **arguments)
            except Exception as error:  # translated, or raised again
                failure = self._failure(error, doing)
                if failure is None:
                    raise
                asked_s = _retry_after_s(error)
            # Raised outside of `except`: the original error is not chained, since its text may hold a token.
            if not isinstance(failure, _Passing):
                raise failure
            wait_s = next(waits_s, None)
            if wait_s is None or asked_s > MOST_WAIT_S:
                raise Unavailable(failure.message)
            time.sleep(max(wait_s, asked_s))

    def clean(self, what: object) -> str:
        """The text of an error without tokens, logins and signatures, on one line."""
        text = " ".join(str(what).split())
        for secret in self._secrets:
            if isinstance(secret, str):
                text = text.replace(secret, "***")
        return _QUERY.sub(r"\1", _LOGIN.sub("", _TOKEN.sub("***", text)))

    def _failure(self, error: Exception, doing: str) -> BegatError | None:
        """The error of ours that tells of one of huggingface_hub's; None if it is not about the Hub."""
        links = list(_chain(error))
        if any(isinstance(link, OfflineModeIsEnabled) for link in links):
            return Unavailable(
                f"{self.name}: {doing} needs the Hub, but HF_HUB_OFFLINE is set. Nothing was changed"
            )
        for link in links:
            if isinstance(link, HfHubHTTPError):
                return self._failure_of_status(link, doing)
        if any(isinstance(one, OSError) and one.errno in _FULL for one in links):
            return Unavailable(f"{self.name}: {doing} failed: no space is left on this machine")
        said = ": ".join(dict.fromkeys(filter(None, map(str, links))))
        text = f"{self.name}: {doing} failed: {self.clean(said)}"
        if any(_is_of_network(link) for link in links):
            return _Passing(f"{text}. Nothing was lost; try again")
        if isinstance(error, LocalTokenNotFoundError):
            return AccessDenied(f"{text}. Log in with hf auth login, or give token=")
        # What huggingface_hub raises for answers that it does not understand, and for files that failed to go up.
        is_told = isinstance(error, ValueError | RuntimeError) and not isinstance(error, BegatError)
        return Refused(text) if is_told or isinstance(error, FileNotFoundError) else None

    def _failure_of_status(self, error: HfHubHTTPError, doing: str) -> BegatError:
        status = error.response.status_code
        text = f"{self.name}: {doing} failed: {self.clean(error)}"
        if isinstance(error, GatedRepoError):
            return AccessDenied(
                f"{self.name} is gated: ask for access on its page, then log in (hf auth login) or give token="
            )
        if isinstance(error, RevisionNotFoundError):
            return _NoRevision(f"{self.name} has no such revision")
        if status in (401, 402, 403):
            return AccessDenied(
                f"{text}. The Hub says so of a repository that is not there, too; else the token has no right to it"
            )
        if isinstance(error, RepositoryNotFoundError):
            return NoRepository(f"{self.name} does not exist, or your token cannot see it.")
        if isinstance(error, RemoteEntryNotFoundError) or status == 404:
            return NotFound(text)
        if status in (409, 412):
            return Raced(text)
        if status in (408, 429) or status >= 500:
            return _Passing(f"{text}. Nothing was lost; try again later")
        return Refused(text)


class _Passing(Unavailable):
    """What may be different the next time."""


class _NoRevision(NotFound):
    """The repository is there, and the revision is not."""


class NoRepository(NotFound):
    """There is no repository of this name and type, as far as we may see."""


def is_same_file(local: Path | bytes, remote: RepoFile) -> bool:
    """Whether the bytes are those that the Hub has, by the digest that it tells."""
    size = len(local) if isinstance(local, bytes) else local.stat().st_size
    if size != remote.size:
        return False
    if remote.lfs is not None:
        return _hash(local, hashlib.sha256()) == remote.lfs.sha256
    return _hash(local, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)) == (
        remote.blob_id
    )


def _hash(local: Path | bytes, hasher: Any) -> str:
    if isinstance(local, bytes):
        hasher.update(local)
        return hasher.hexdigest()
    with open(local, "rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_network(error: BaseException) -> bool:
    # huggingface_hub 1 speaks through httpx, 2 through httpx2: told by name, not by import.
    names = {one.__module__.partition(".")[0] for one in type(error).__mro__}
    return bool(names & {"httpx", "httpx2", "hf_xet"}) or isinstance(
        error, ConnectionError | TimeoutError | json.JSONDecodeError
    )


def _retry_after_s(error: BaseException) -> float:
    for link in _chain(error):
        headers: Mapping[str, str] = getattr(getattr(link, "response", None), "headers", {})
        asked = headers.get("Retry-After", "")
        if asked.isdigit():
            return float(asked)
    return 0.0
