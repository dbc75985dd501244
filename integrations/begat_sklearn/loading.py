"""A model of the store as an estimator again, only as far as the caller trusts its maker."""

from __future__ import annotations

import os
from collections.abc import Sequence

import begat
from begat_sklearn.model_file import read_estimator, serializer_of
from begat_sklearn.tracked import TrackedEstimator


def load_estimator(
    ref: str | begat.Version,
    *,
    trusted: Sequence[str] = (),
    allow_pickle: bool = False,
    store: str | os.PathLike[str] | None = None,
) -> TrackedEstimator:
    """The model of a version that begat_sklearn made, fitted; the active run is recorded as its user.

    It predicts, and its `log_predictions` knows where it comes from; `.estimator_` is the plain estimator. Without an
    active run it is read from `store` (a store's folder; the default store if None), and nothing is recorded.

    A file can name any class for loading to call. Of a skops file only types that skops knows to be harmless, and those
    listed in `trusted` by their full names, are loaded; a joblib file is a pickle, which runs what its maker put
    inside, and is loaded with `allow_pickle=True` only. Otherwise it raises `begat.errors.Refused` telling what to
    trust, and nothing in the file has run. All bytes are verified first.
    """
    if store is None or isinstance(ref, begat.Version) or begat.active_run() is not None:
        version = begat.use_artifact(ref)
        estimator = read_estimator(version, trusted=trusted, allow_pickle=allow_pickle)
    else:
        with begat.open_store(store) as opened:
            version = opened.get_artifact(ref)
            estimator = read_estimator(version, trusted=trusted, allow_pickle=allow_pickle)
    tracked = TrackedEstimator(
        estimator, name=version.name, store=store, serializer=serializer_of(version)
    )
    tracked.estimator_ = estimator
    tracked.version_ref_ = version.ref
    return tracked
