"""Which version a model's weights are: known by their content, however they were loaded.

Keras puts the time into each `.keras` file, so the file of the same weights is another one each time, and nothing in
it can be read back by whoever loads it. The numbers themselves can.
"""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from blake3 import blake3

from begat import Recorder, Version
from begat.errors import NotFound

# In the metadata of a version.
KEY = "weights"


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a model was fitted to, in this process, and on what."""

    name: str
    store: str | os.PathLike[str] | None
    used: tuple[Version, ...]


_fitted: WeakKeyDictionary[Any, Fitted] = WeakKeyDictionary()


def note(model: Any, fitted: Fitted) -> None:
    """Remember it for as long as there is the model."""
    _fitted[model] = fitted


def fitted(model: Any) -> Fitted | None:
    """What was noted."""
    return _fitted.get(model)


def digest_of(model: Any) -> str | None:
    """The digest of a model's weights, in their order, without their names; None if it has none.

    Names are left out because Keras numbers them through the process. Random seeds and metrics are no weights.
    """
    weights = list(model.weights)
    if not weights:
        return None
    # The training may wait for this at every save. A number of threads, since blake3's own choice hangs in a fork.
    hasher = blake3(max_threads=min(os.cpu_count() or 1, 8))
    for weight in weights:
        value = np.ascontiguousarray(_values(weight))
        hasher.update(f"{weight.dtype}{value.shape};".encode())
        hasher.update(value.reshape(-1).view(np.uint8).data)
    return f"b3:{hasher.hexdigest()}"


@contextlib.contextmanager
def digest_meanwhile(model: Any) -> Generator[Callable[[], str | None]]:
    """The digest of a model's weights, made while the block writes them; to be asked for after the block."""
    # Most of a save is one thread that waits for the disk or copies, and hashing needs no lock of Python's.
    found: Future[str | None] = Future()

    def look() -> None:
        try:
            found.set_result(digest_of(model))
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for
            found.set_exception(error)

    thread = threading.Thread(target=look, name="begat-weights", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending
        look()
    try:
        yield found.result
    finally:
        found.exception()  # after this the weights may change, or be given back


def _values(weight: Any) -> Any:
    """The numbers of a weight where they lie, or a copy where NumPy cannot see them (other devices, bfloat16)."""
    try:
        value: Any = keras.ops.stop_gradient(weight.value)  # what has a gradient is not shown
        return np.from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return keras.ops.convert_to_numpy(weight)


def find(recorder: Recorder, model: Any, names: Iterable[str]) -> Version | None:
    """The newest version of these artifacts that has the model's weights."""
    wanted = set(names)
    digest = digest_of(model) if wanted and recorder.is_recording else None
    if digest is None:
        return None
    for name in sorted(wanted):
        try:
            versions = recorder.store.versions(name)
        except NotFound:
            continue
        for version in reversed(versions):
            if version.metadata.get(KEY) == digest:
                return version
    return None
