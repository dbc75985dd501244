"""Who else in this process is told of runs: another tracker that links its own runs to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from begat.errors import warn

if TYPE_CHECKING:
    from begat.run import Run


class RunListener(Protocol):
    """Told of the runs that this process starts. An exception of a listener is a warning, and the run goes on."""

    def run_started(self, run: Run) -> None:
        """A run was started here; it can be given params and tags already."""
        ...

    def inputs_changed(self, run: Run) -> None:
        """A run that this process started or joined has used one more version."""
        ...


_listeners: dict[RunListener, None] = {}  # in the order in which they were added


def add_run_listener(listener: RunListener) -> None:
    """Tell a listener of every run that this process starts from now on; once, however often it is added."""
    _listeners[listener] = None


def remove_run_listener(listener: RunListener) -> None:
    """Tell a listener nothing more."""
    _listeners.pop(listener, None)


def tell_started(run: Run) -> None:
    """A run was started."""
    _tell(lambda listener: listener.run_started(run))


def tell_inputs_changed(run: Run) -> None:
    """A run has used one more version."""
    _tell(lambda listener: listener.inputs_changed(run))


def _tell(act: Callable[[RunListener], None]) -> None:
    for listener in list(_listeners):
        try:
            act(listener)
        except Exception as error:  # noqa: BLE001 - a door: another tracker's trouble is not the run's
            warn(f"{type(listener).__name__} could not be told of a run: {error}")
