"""A fitted estimator as a file of a version, and back: by skops, or by joblib for those who ask for it."""

# scikit-learn, skops and joblib ship no types; what comes from them is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import joblib
import skops
import skops.io

import begat
from begat.errors import BadInput, NotFound, Refused
from begat_sklearn.skops_file import bytes_of_estimator

Serializer = Literal["skops", "joblib"]

SKOPS_FILE = "model.skops"
JOBLIB_FILE = "model.joblib"
VERSIONS = {"skops": skops.__version__, "joblib": joblib.__version__}

# What scikit-learn's callbacks leave on an estimator: its own callbacks, and the state of a fit that is going on.
CALLBACK_ATTRIBUTES = (
    *("_skl_callbacks", "_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx"),
)

# Plain records of which metadata an estimator asks for (`set_fit_request`); skops does not list them as harmless yet.
REQUESTS = (
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)


def check_serializer(serializer: object) -> None:
    """Raises `TypeError` for another serializer than those there are."""
    if serializer not in get_args(Serializer):
        raise TypeError(f"serializer is 'skops' or 'joblib', not {serializer!r}")


def write_estimator(estimator: object, folder: Path, serializer: Serializer) -> None:
    """Write the one file of a model's version into a folder. Callbacks are no part of a model and are left out."""
    with _at_rest(estimator):
        if serializer == "joblib":
            joblib.dump(estimator, folder / JOBLIB_FILE)
        else:
            (folder / SKOPS_FILE).write_bytes(_skops_bytes(estimator))


def _skops_bytes(estimator: object) -> bytes:
    try:
        return bytes_of_estimator(estimator)
    except BadInput:
        raise
    except Exception as error:  # each library has its own
        raise BadInput(
            f"skops cannot write it: {error}. joblib can write more: serializer='joblib'"
        ) from error


def serializer_of(version: begat.Version) -> Serializer:
    """What the model in a version was written by; `begat.errors.NotFound` if there is none."""
    paths = {entry.path for entry in version.entries}
    if SKOPS_FILE in paths:
        return "skops"
    if JOBLIB_FILE in paths:
        return "joblib"
    raise NotFound(
        f"{version.ref} has neither {SKOPS_FILE} nor {JOBLIB_FILE}: it was not made by begat_sklearn"
    )


def read_estimator(version: begat.Version, *, trusted: Sequence[str], allow_pickle: bool) -> Any:
    """The estimator in a version, all bytes verified; `begat.errors.Refused` if loading it could run other code."""
    if serializer_of(version) == "joblib":
        if not allow_pickle:
            raise Refused(
                f"{version.ref} holds {JOBLIB_FILE}, a pickle: loading it runs whatever its maker put inside; nothing "
                f"was loaded. If you trust who made it: load_estimator({version.ref!r}, allow_pickle=True)"
            )
        return joblib.load(io.BytesIO(version.read_bytes(JOBLIB_FILE)))
    data = version.read_bytes(SKOPS_FILE)
    unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - {*trusted, *REQUESTS})
    if unknown:
        raise Refused(
            f"{version.ref} holds types that skops does not know to be harmless: {', '.join(unknown)}; nothing was "
            f"loaded. If you trust who made it: load_estimator({version.ref!r}, trusted={unknown!r})"
        )
    return skops.io.loads(data, trusted=[*trusted, *REQUESTS])


@contextmanager
def _at_rest(estimator: object) -> Generator[None]:
    """Take off an estimator, and all inside it, what cannot be stored or should not, for as long as the block runs."""
    taken: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for own in _estimators(estimator):
            taken.append(
                (own, {name: own.pop(name) for name in CALLBACK_ATTRIBUTES if name in own})
            )
            # A request knows its estimator, which skops follows in circles; only messages name it.
            for request in _requests(own.get("_metadata_request")):
                taken.append((request, {"owner": request["owner"]}))
                request["owner"] = _name_of(request["owner"])
        yield
    finally:
        for own, found in taken:
            own.update(found)


def _estimators(estimator: object) -> Iterator[dict[str, Any]]:
    """The attributes of an estimator and of each one that it holds, however deep in lists and dicts."""
    waiting, seen = [estimator], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif hasattr(value, "get_params") and not isinstance(value, type):
            own: dict[str, Any] = getattr(value, "__dict__", {})
            waiting.extend(own.values())
            yield own


def _requests(request: object) -> Iterator[dict[str, Any]]:
    """The attributes of a request for metadata, and those of its parts, one for each method."""
    for one in (request, *getattr(request, "__dict__", {}).values()):
        if "owner" in getattr(one, "__dict__", {}):
            yield vars(one)


def _name_of(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
