"""How a recorder ends: what it puts back, what it waits for, what its run ends as, and what becomes of errors.

Whatever the framework does, each training comes to one of these ends:

    finish()             it came to its end: finished
    finish(error=...)    an exception, Ctrl-C, `sys.exit`: failed or interrupted, by what it was
    left()               nobody told of the end: by the exception if it can still be found, else interrupted

A run is interrupted where all that is known is that its training stopped before its end. It never says finished then,
and does not say failed either, since the user may have stopped it. The error of the run tells which it was.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self, cast

from begat.active import outcome
from begat.model import Json, RunStatus
from begat.recording.leaving import IsCall, TrainingLeft, Watch
from begat.recording.policy import DRAIN_TIMEOUT_INTERRUPTED_S, Policy
from begat.recording.shipping import LOST, DrainReport, Shipping
from begat.recording.troubles import Troubles
from begat.run import Run
from begat.store import Store


class Undeclared(Exception):
    """A declared input does not exist: the one error that is raised whatever `on_error` says."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ending:
    """The part of a `Recorder` that is about its end."""

    def __init__(self, run: Run | None, policy: Policy, *, owns_run: bool = False) -> None:
        self.policy = policy
        self.run = run
        self._owns_run = owns_run
        self._owed: tuple[RunStatus, BaseException | None] | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._unresolved: list[str] = []
        self._told: deque[tuple[str, str, Exception]] = deque()
        self._troubles = Troubles()
        self._acts: list[Callable[[], object]] = []
        self._watch: Watch | None = None
        self._shipping: Shipping | None = None
        self._is_finished = run is None
        if run is not None:
            self._shipping = Shipping(self.store, tell=self._tell)
            self._shipping.start()
            run.before_end(self._before_run_ends)
            _recording.add(self)

    @property
    def is_recording(self) -> bool:
        """Whether what happens here is recorded; not in a forked child, where the parent goes on."""
        return not self._is_finished and self._pid == os.getpid()

    @property
    def store(self) -> Store:
        """The store that is recorded into; `TypeError` where nothing is recorded."""
        if self.run is None:
            raise TypeError("this recorder has no store: nothing is recorded here")
        return cast("Store", self.run.home)

    # --- what is to be put back ---

    def at_end(self, act: Callable[[], object]) -> None:
        """Have something done when the recorder ends, on every way out and also where nothing is recorded.

        First of all, and the last one first: what was wrapped is put back, what was made for a while is removed.
        """
        self._acts.append(act)

    def replace(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Put a wrapper in the place of a method of one object, until the recorder ends; never of a class or module."""
        # Into its dict, because Keras and PyTorch look at each attribute that is set on a model.
        own = cast("dict[str, Any]", vars(owner))
        before = own.get(name)
        own[name] = wrapper

        def put_back() -> None:
            # Whoever wrapped it after us holds on to ours, which does nothing from now on.
            if own.get(name) is not wrapper:
                return
            if before is None:
                del own[name]
            else:
                own[name] = before

        self.at_end(put_back)

    # --- a training that may be left ---

    def watch(self, is_running: IsCall, *, has_raised: IsCall | None = None) -> None:
        """For a framework that tells no callback of an exception: know by the stack that the training was left.

        `is_running` says of a frame whether it is the call that trains; when no thread has one, it was left. Then it
        ends as `left` says: before another recorder is attached, with its run, or with the process. `has_raised` says
        whether an exception came out of that call, of a frame of its traceback (default: the same). They are asked of
        many frames, so they look at no local variable before the name of the function fits, and they hold on to
        nothing large.
        """
        self._watch = Watch(is_running, has_raised or is_running)

    def left(self) -> DrainReport:
        """End a training that was left without a hook.

        The run ends by the exception, if that came out of a call that is watched, and is handled now or was shown last.
        Else all that is known is that it stopped before its end: it is interrupted, with `TrainingLeft` as its error.
        """
        return self.finish(error=self._cause() or TrainingLeft())

    @contextlib.contextmanager
    def beginning(self) -> Generator[None]:
        """Around what is done as a training begins: an exception that leaves the block ends the run, too."""
        try:
            yield
        except BaseException as error:
            self.finish(error=error)
            raise

    # --- the end ---

    def drain(self, timeout_s: float | None = None) -> DrainReport:
        """Wait until all is stored, but not longer than that (default: the policy's time)."""
        if not self.is_recording or self._shipping is None:
            return DrainReport()
        return self._shipping.drain(self.policy.drain_timeout_s if timeout_s is None else timeout_s)

    def finish(
        self, status: RunStatus | None = None, *, error: BaseException | None = None
    ) -> DrainReport:
        """Store what waits, within the policy's time, and end the run if it was started here; once.

        Without a status the error decides: none is finished, Ctrl-C interrupted, any other one failed. `sys.exit` with
        no code but 0 has interrupted a training. A run that other recorders of this process have joined stays open
        until the last of them ends; how, was decided here.
        """
        if self._pid != os.getpid():
            return DrainReport()
        is_calm = error is None
        self._put_back(is_quiet=not is_calm)
        if not self.is_recording:
            return DrainReport()
        limit_s = self.policy.drain_timeout_s
        report = self.drain(limit_s if is_calm else min(limit_s, DRAIN_TIMEOUT_INTERRUPTED_S))
        # An error of ours would hide the one that ended the training.
        with self._door("ending the run", is_quiet=not is_calm):
            self._mark_run()
            self._is_finished = True
            if self._shipping is not None:
                self._shipping.close()
            self._end_run(status, error)
            if report.pending:
                self._troubles.warn(
                    f"{len(report.pending)} versions are taken in but not stored yet: {', '.join(report.pending[:3])}. "
                    "Nothing is lost; begat sync stores them"
                )
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(error=error)

    @contextlib.contextmanager
    def guarded(self, doing: str) -> Generator[None]:
        """For work of an integration's own: what goes wrong in the block is warned of or raised, as `on_error` says."""
        with self._door(doing):
            yield

    # --- inside ---

    def _tell(self, what: str, outcome: str, error: Exception) -> None:
        # Called by the worker; said by the next call of the training's own thread, where a warning can be seen to.
        self._told.append((what, outcome, error))

    def _put_back(self, *, is_quiet: bool) -> None:
        acts, self._acts = self._acts, []
        for act in reversed(acts):
            with self._door("putting back what was changed for the training", is_quiet=is_quiet):
                act()

    def _cause(self) -> BaseException | None:
        return self._watch.cause() if self._watch is not None else None

    @property
    def _is_left(self) -> bool:
        return self._watch is not None and self.is_recording and self._watch.is_left

    def _before_run_ends(self) -> None:
        if not self.is_recording:
            return
        if self._watch is None:
            self.finish()
        else:
            self.left()

    def _end_run(self, status: RunStatus | None, error: BaseException | None) -> None:
        """End the run if it is ours, or leave that to another recorder that has joined it and still records."""
        run = self.run
        end_those_left(run)
        with recorders_lock():
            _recording.discard(self)
            if run is None or not self._owns_run:
                return
            how = self._owed or _outcome(status, error)
            heir = next((each for each in _recording if each.run is run), None)
            if heir is not None:
                self._owns_run, heir._owns_run, heir._owed = False, True, how
            else:
                run.finish(how[0], error=how[1])

    def _mark_run(self) -> None:
        missing: dict[str, Json] = {
            "begat.unresolved": self._unresolved,
            "begat.not_logged": self._troubles.not_logged,
        }
        if self.run is not None and any(missing.values()):
            self.run.log_params({name: texts for name, texts in missing.items() if texts})

    @contextlib.contextmanager
    def _door(self, doing: str, what: object = "", *, is_quiet: bool = False) -> Generator[None]:
        """Errors of begat stop here, or not, as `on_error` says; what the worker had to say is said here too."""
        raises = self.policy.on_error == "raise" and not is_quiet
        try:
            yield
        except Undeclared as error:
            raise error.cause from None
        except Exception as error:  # the door: tracking must not end a training
            if raises:
                raise
            text = f"{doing} {what}".rstrip()
            self._troubles.add(f"{text} failed: {error}", kind=f"{doing}: {type(error).__name__}")
        while self._told:
            subject, outcome, failure = self._told.popleft()
            if raises:
                raise failure
            say = self._troubles.add if outcome == LOST else self._troubles.warn
            say(f"{subject} {outcome}: {failure}", kind=f"{outcome}: {type(failure).__name__}")


def _outcome(
    status: RunStatus | None, error: BaseException | None
) -> tuple[RunStatus, BaseException | None]:
    is_stopped = isinstance(error, TrainingLeft) or (
        isinstance(error, SystemExit) and error.code in (None, 0)
    )
    decided, told = outcome(error)
    if is_stopped:
        decided, told = "interrupted", error
    return status or decided, told


# --- all recorders of this process that record ---

_recording: weakref.WeakSet[Ending] = weakref.WeakSet()
_attaching = threading.RLock()


def recorders_lock() -> contextlib.AbstractContextManager[bool]:
    """Held while a run is joined or ended, so that no recorder joins one that is about to end."""
    return _attaching


def end_those_left(run: Run | None = None) -> None:
    """End the trainings that were left without a hook (of one run), before another could become part of their run."""
    for recorder in list(_recording):
        if (run is None or recorder.run == run) and recorder._is_left:  # pyright: ignore[reportPrivateUsage]
            recorder.left()


def _finish_all() -> None:
    """At exit: what nobody finished ends with the process. Before the runs end: those were registered earlier."""
    error = getattr(sys, "last_value", None)
    for recorder in list(_recording):
        if recorder._watch is not None:  # pyright: ignore[reportPrivateUsage]
            recorder.left()
        else:
            recorder.finish(error=error if isinstance(error, BaseException) else None)


def _start_anew_in_child() -> None:
    global _attaching
    _attaching = threading.RLock()  # another thread of the parent may have held it


atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
