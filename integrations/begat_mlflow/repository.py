"""MLflow's artifacts in a store of begat: each call that logs makes a version, and reading is verified."""

# MLflow's own signatures are untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mlflow.entities.file_info import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository

import begat
from begat.errors import (
    AliasMoved,
    ArtifactNotFound,
    BadInput,
    BadPath,
    NotFound,
    RunNotFound,
    Unavailable,
    VersionNotFound,
)
from begat_mlflow.locations import SCHEME, Location, joined, locate

# Another process that logs to the same run at the same time gets ahead now and then, but not this often in a row.
ATTEMPTS = 100
# Threads of this process take turns, each run by one of these: MLflow logs from a pool of them.
_turns = tuple(threading.Lock() for _ in range(64))


class BegatArtifactRepository(ArtifactRepository):
    """The artifacts below a `begat://` URI, in the default store of the process.

    The artifacts of one MLflow run are one artifact of begat. Every call that logs or deletes makes a new version of
    it, durable when the call returns; what was overwritten is in the version before. A version is made by the active
    run of begat, if that is of the same store. Errors are `MlflowException`.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri)
        self.registry_uri = registry_uri  # which MLflow before 3.4 has no place for
        self._root = artifact_uri.removeprefix(SCHEME).strip("/")
        self._newest: begat.Version | None = None

    # --- writing ---

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a file below a folder of the run; `artifact_path` is that folder."""
        place = locate(self._root, artifact_path)
        target = joined(place.inside, os.path.basename(local_file))
        with _told():
            _changed(place, lambda draft: draft.add(local_file, target, overwrite=True))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store the files of a folder below a folder of the run, as one version; links are followed."""
        place = locate(self._root, artifact_path)
        target = place.inside or None
        with _told():
            _changed(
                place,
                lambda draft: draft.add(local_dir, target, overwrite=True, symlinks="follow"),
            )

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Leave a path out of the next version; without a path every version is deleted."""
        place = locate(self._root, artifact_path)
        with _told():
            if place.inside:
                _changed(place, lambda draft: draft.remove(place.inside))
                return
            _check_not_pinned(place)
            for version in begat.default_store().versions(place.ref):
                version.delete(force=True)

    # --- reading ---

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What lies directly below a path, by name; nothing for a file, and for what is not there."""
        with _told():
            place = locate(self._root, path)
            children = _children(self._files(place), place.inside)
            if not children and not place.owner and not place.is_pinned:
                children = _artifacts_below(joined(self._root, path))
        return [
            FileInfo(joined(path or "", name), size is None, size)
            for name, size in sorted(children.items())
        ]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Write one file, verified; there is never half a file at `local_path`."""
        place = locate(self._root, remote_file_path)
        target = Path(local_path)
        with _told():
            pieces = self._version(place).stream(place.inside)
            _write_whole(pieces, target)

    def _files(self, place: Location) -> Iterable[tuple[str, int]]:
        try:
            version = self._version(place)
        except (ArtifactNotFound, VersionNotFound):
            if place.is_pinned:
                raise
            return ()
        return [
            (entry.path, entry.size_bytes)
            for entry in version.entries
            if isinstance(entry, begat.StoredFile)
        ]

    def _version(self, place: Location) -> begat.Version:
        """The version that is meant; its list of entries is read once for all files of a download."""
        found = begat.get_artifact(place.ref)
        known = self._newest
        if known is not None and known == found:
            return known
        self._newest = found
        return found


def _changed(place: Location, change: Callable[[begat.Artifact], object]) -> None:
    """Make the next version of an artifact, so that nothing which others log at the same time is lost."""
    _check_not_pinned(place)
    store = begat.default_store()
    metadata = {"mlflow_id": place.owner} if place.owner else {}
    with _turns[hash(place.ref) % len(_turns)]:
        for _ in range(ATTEMPTS):
            try:
                base = store.get_artifact(place.ref)
                draft, expect = base.draft(), f"v{base.number}"
            except (ArtifactNotFound, VersionNotFound):
                draft = begat.Artifact(place.ref, place.type, metadata=metadata)
                expect = begat.ABSENT
            change(draft)
            try:
                store.log_artifact(draft, expect=expect, run=_active_run(store))
                return
            except AliasMoved:
                continue
    raise Unavailable(
        f"{place.ref} changed {ATTEMPTS} times while something was logged to it; it was not stored. Try again"
    )


def _active_run(store: begat.Store) -> begat.Run | None:
    run = begat.active_run()
    if run is None or not run.id:
        return None
    try:
        return store.get_run(run.id)
    except RunNotFound:  # of another store
        return None


def _check_not_pinned(place: Location) -> None:
    if place.is_pinned:
        raise BadInput(
            f"{place.ref} is one version, which never changes; nothing was stored. Log below a location "
            f"without a version in it, such as {SCHEME}{place.ref.partition(':')[0].partition('@')[0]}/mlflow"
        )


def _children(files: Iterable[tuple[str, int]], folder: str) -> dict[str, int | None]:
    """Names directly below a folder: a file's size in bytes, or None for a folder."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, int | None] = {}
    for path, size_bytes in files:
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition("/")
            found[name] = None if slash else size_bytes
    return found


def _artifacts_below(path: str) -> dict[str, int | None]:
    """Above the roots of runs: the artifacts' names are the folders."""
    names = [(record.name, 0) for record in begat.default_store().artifacts()]
    return dict.fromkeys(_children(names, path))


def _write_whole(pieces: Iterable[bytes], target: Path) -> None:
    part = target.with_name(f".{uuid4().hex}.part")
    try:
        with part.open("xb") as out:
            out.writelines(pieces)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _told() -> Generator[None]:
    """Errors of begat as MLflow's own, with the code that its server makes an HTTP status of."""
    try:
        yield
    except begat.BegatError as error:
        code = INTERNAL_ERROR
        if isinstance(error, NotFound | BadPath):
            code = RESOURCE_DOES_NOT_EXIST
        elif isinstance(error, BadInput):
            code = INVALID_PARAMETER_VALUE
        elif isinstance(error, Unavailable):
            code = TEMPORARILY_UNAVAILABLE
        raise MlflowException(str(error), error_code=code) from error
