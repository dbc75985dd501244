"""What every callback calls: a training's inputs, checkpoints and end, with all the state and policy they need.

    recorder = begat.Recorder.attach(uses=["digits"])   at the earliest hook: committed before the first batch
    recorder.observe(loader)                      at the last hook before it: what is really read
    recorder.saved("out/epoch=3.ckpt", step=40)   inside the save hook: staged now, stored while training goes on
    recorder.alias("out/epoch=3.ckpt", "best")    when the framework says so
    recorder.removed("out/epoch=2.ckpt")          the framework's own top-k
    recorder.finish(error=error)                  every way out

Tracking never ends a training and never loses a version silently: what goes wrong is a warning (`on_error="warn"`) or
an error (`"raise"`). The one exception is a declared input that does not exist, which always raises. Hooks are called
on the training's thread, so nothing here waits for the store but `consume`, `resumed_from`, `drain` and `finish`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from begat.active import active_run
from begat.artifact import Artifact
from begat.default import store_meant_by
from begat.errors import BadInput, BadPath, BadReference, BegatError, NotFound, warn
from begat.facts import checkpoint_facts
from begat.identity import new_uid
from begat.model import Json
from begat.opening import open_store
from begat.process import rank_from_environment
from begat.recording.ending import Ending, Undeclared, end_those_left, recorders_lock
from begat.recording.observing import observe
from begat.recording.policy import DRAIN_TIMEOUT_S, MAX_PENDING, Keep, OnError, Policy
from begat.recording.sealing import Predictions
from begat.recording.staging import Pointed, Retired
from begat.reference import check_alias
from begat.run import Run
from begat.starting import check_inputs
from begat.store import Store
from begat.version import Version

STATE_SCHEMA = 1


class Recorder(Ending):
    """One training, as its callback records it; made by `attach`. Safe to use from several threads.

    Where nothing is to be recorded (another rank, a forked child, a store that could not be opened) every method does
    nothing. A pickled copy goes on with the same run, with a journal of its own. As a context manager it finishes with
    the block.
    """

    def __init__(self, run: Run | None, policy: Policy, *, owns_run: bool = False) -> None:
        super().__init__(run, policy, owns_run=owns_run)
        self._saved: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._declared: tuple[Version, ...] = ()

    @classmethod
    def attach(
        cls,
        run: Run | None = None,
        *,
        store: Store | str | os.PathLike[str] | None = None,
        name: str = "model",
        type: str = "model",
        job: str | None = None,
        uses: Iterable[str | Version] = (),
        on_error: OnError = "warn",
        keep: Keep = "mirror",
        max_pending: int = MAX_PENDING,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        is_main: bool | None = None,
    ) -> Recorder:
        """A recorder for a run: the given one, the active one, the one of `BEGAT_RUN_ID`, or a new one of its own.

        `uses` is consumed; a reference that does not exist raises before a run of its own is made, and leaves none.
        `name` and `type` are those of the checkpoints' artifact. `keep="mirror"` retires what the framework removes,
        `"all"` keeps every version. At most `max_pending` versions wait to be stored, or as many as fit into a tenth
        of the free space. `is_main=False` is a process that only watches; None asks the environment (RANK and its kin).
        Trainings that were left without a hook are ended first (see `watch`).
        """
        chosen = Policy(
            name=name,
            type=type,
            on_error=on_error,
            keep=keep,
            max_pending=max_pending,
            drain_timeout_s=drain_timeout_s,
        )
        if not ((rank_from_environment() or 0) == 0 if is_main is None else is_main):
            return cls(None, chosen)
        asked = [uses] if isinstance(uses, str | Version) else list(uses)
        end_those_left()
        try:
            with recorders_lock():
                active = run or active_run()
                if active is not None:
                    recorder = cls(active, chosen)
                else:
                    home = store_meant_by(store)
                    check_inputs(home, asked)
                    recorder = cls(home.start_run(job=job), chosen, owns_run=True)
        except (BegatError, OSError) as error:
            if chosen.on_error == "raise" or isinstance(error, NotFound | BadReference | BadPath):
                raise
            warn(f"this training is not recorded: {error}")
            return cls(None, chosen)
        with recorder.beginning():
            recorder._declared = tuple(recorder.consume(asked))
        return recorder

    @property
    def declared(self) -> tuple[Version, ...]:
        """The versions that `attach(uses=...)` meant."""
        return self._declared

    # --- inputs ---

    def consume(self, refs: Iterable[str | Version], *, role: str | None = None) -> list[Version]:
        """The versions that these references mean, recorded as used by the run before this returns.

        All are resolved before any is recorded. One that does not exist raises and fails the run (`attach(uses=)`
        makes none); if the store cannot be asked, `on_error` decides, and the run is marked with what is unresolved.
        """
        if not self.is_recording:
            return []
        asked = [refs] if isinstance(refs, str | Version) else list(refs)
        texts = [ref if isinstance(ref, str) else ref.ref for ref in asked]
        used: list[Version] = []
        with self._door("recording what the training uses"):
            self._unresolved = texts
            try:
                for text in texts:
                    self.store.get_artifact(text)
                for ref in asked:
                    used.append(cast("Run", self.run).use_artifact(ref, role=role))
            except (NotFound, BadInput) as error:
                self.finish(error=error)
                raise Undeclared(error) from error
            self._unresolved = []
        return used

    def observe(self, obj: object, *, role: str = "train") -> tuple[str, ...]:
        """The versions that data comes from: recorded as detected inputs of the run, and returned by ref.

        `obj` is a loader, a dataset, arrays, a table, a path, a version, or a list or dict of those. Known are paths
        that begat handed out, what `Version.recognize` registered, and what the stored files of declared artifacts
        hold. Nothing is iterated. What the data is, is kept with the run also where nothing is known of it. If another
        version of the same artifact was declared, that is warned of once.
        """
        if not self.is_recording:
            return ()
        with self._door("looking at where the training data comes from"):
            seen = observe(cast("Run", self.run), obj, role=role)
            if seen.mismatch:
                run_id = cast("Run", self.run).id
                self._troubles.warn(f"{seen.mismatch}; both are recorded (begat show {run_id})")
            return seen.refs
        return ()

    def resumed_from(self, uid: str, *, role: str = "checkpoint") -> Version | None:
        """Record that the run goes on from a checkpoint, known by the id that `reserve` gave; None if it is unknown."""
        if not self.is_recording:
            return None
        with self._door("recording which checkpoint the training goes on from"):
            if self._shipping is not None and self._shipping.is_waiting(uid):
                self.drain()
            known = self.store.catalog.commits.find_token(uid)
            if known is not None:
                run = cast("Run", self.run)
                return run.use_artifact(self.store.version_of(known.version), role=role)
            self._troubles.warn(
                f"the checkpoint with the id {uid} that the run goes on from is not in {self.store.path}, so the "
                "lineage begins here. If an earlier process was killed, begat sync may still store it"
            )
        return None

    # --- outputs ---

    def reserve(self) -> str:
        """An id for a checkpoint that is about to be written, to be put inside and given to `saved`.

        It names the version for good: whoever resumes from the file finds it by `resumed_from`.
        """
        return new_uid()

    def saved(
        self,
        path: str | os.PathLike[str],
        *,
        uid: str | None = None,
        step: int | None = None,
        epoch: int | None = None,
        score: float | None = None,
        monitor: str | None = None,
        aliases: Iterable[str] = (),
        metadata: Mapping[str, Json] | None = None,
        beside: Iterable[str | os.PathLike[str]] = (),
        is_replaced_whole: bool = False,
    ) -> str | None:
        """Take in a checkpoint (a file or a folder) that was just written; its id, or None if it could not be.

        When this returns, the file may be removed or overwritten. What was saved to the same path before is retired.
        `metadata` is what else there is to tell of it, `beside` are other files that it consists of. With
        `is_replaced_whole` the writer promises never to write into an existing file, which allows a hard link.
        """
        if not self.is_recording or self._shipping is None:
            return None
        key = os.path.realpath(path)
        with self._door("taking in", path):
            token = uid or self.reserve()
            files = Artifact(self.policy.name)
            for each in (path, *beside):
                files.add(os.fspath(each))
            plan = files.entries
            size_bytes = sum(planned.size_bytes for planned in plan)
            self._shipping.make_room(size_bytes, max_pending=self.policy.max_pending)
            wanted = [check_alias(alias) for alias in aliases]
            staged = self._shipping.journal.stage(
                self.policy.name,
                plan,
                token=token,
                type=self.policy.type,
                metadata={
                    **(metadata or {}),
                    **checkpoint_facts(path, step=step, epoch=epoch, score=score, monitor=monitor),
                },
                aliases=wanted,
                run=cast("Run", self.run).id,
                may_link=is_replaced_whole,
            )
            with self._lock:
                before = self._saved.get(key)
                self._saved[key] = token
                self._aliases.update(dict.fromkeys(wanted, token))
                self._shipping.submit(staged)
                if before is not None:
                    self._retire(before, unless=token)
            return token
        return None

    def alias(self, path: str | os.PathLike[str], alias: str) -> None:
        """Move an alias to the version that was saved at a path (a link is followed); nothing if none was."""
        if not self.is_recording or self._shipping is None:
            return
        with self._door("moving the alias", alias), self._lock:
            token = self._saved.get(os.path.realpath(path))
            if token is None or self._aliases.get(alias) == token:
                return
            step = Pointed(
                id=new_uid(),
                at=self.store.catalog.now(),
                token=token,
                alias=check_alias(alias),
                run=cast("Run", self.run).id,
            )
            self._shipping.journal.add(step)
            self._shipping.submit(step)
            self._aliases[alias] = token

    def removed(self, path: str | os.PathLike[str]) -> None:
        """The framework removed a checkpoint: its version is retired, unless everything is kept."""
        if not self.is_recording:
            return
        with self._door("retiring what was", path), self._lock:
            token = self._saved.pop(os.path.realpath(path), None)
            if token is not None:
                self._retire(token)

    def output(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        type: str | None = None,
        metadata: Mapping[str, Json] | None = None,
    ) -> Version | None:
        """Store something else that the training made; returns when it is durable, None if that failed."""
        if not self.is_recording:
            return None
        with self._door("storing", name):
            return cast("Run", self.run).log_artifact(name, path, type=type, metadata=metadata)
        return None

    def predictions(
        self,
        *,
        model: str | None = None,
        datasets: Iterable[str] = (),
        classes: Sequence[Json] | None = None,
        names_run: bool = False,
        above: str | os.PathLike[str] | None = None,
    ) -> Predictions:
        """Begin a version of predictions: `.write(pred=...)` adds a batch, `.store(name)` makes the version.

        `model` and `datasets` are references, `classes` the names of the classes; they are told in the tables and in
        the version's metadata. With `names_run` the tables name the run, so that equal predictions of two runs are two
        versions. The tables are written in a folder of its own, in `above` where other machines are to write there too.
        """
        facts: dict[str, Json] = {
            "model": model,
            "datasets": list(datasets),
            "classes": None if classes is None else list(classes),
        }
        return Predictions(self, facts, names_run=names_run, above=above)

    def note(
        self,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, Json] | None = None,
    ) -> None:
        """Add parameters and summary values to the run."""
        if not self.is_recording:
            return
        with self._door("recording parameters and metrics"):
            if params:
                cast("Run", self.run).log_params(params)
            if metrics:
                cast("Run", self.run).log_metrics(metrics)

    # --- what is kept inside checkpoints ---

    def state(self) -> dict[str, Json]:
        """What a resumed training needs to go on: which version is at which path. Small, and JSON."""
        with self._lock:
            run_id = self.run.id if self.run else None
            return {"schema": STATE_SCHEMA, "run_id": run_id, "saved": dict(self._saved)}

    def restore(self, state: Mapping[str, Json]) -> None:
        """Take up the state of an earlier training; what this one has saved already counts more."""
        saved = state.get("saved")
        if state.get("schema") == STATE_SCHEMA and isinstance(saved, dict):
            with self._lock:
                self._saved = {**cast("dict[str, str]", saved), **self._saved}

    # --- inside ---

    def _retire(self, token: str, *, unless: str | None = None) -> None:
        if self.policy.keep == "all" or self._shipping is None:
            return
        step = Retired(id=new_uid(), token=token, unless=unless)
        self._shipping.journal.add(step)
        self._shipping.submit(step)

    def __reduce__(self) -> tuple[Any, ...]:
        run_id = self.run.id if self.run else None
        path = str(self.store.path) if self.run else None
        return _unpickled, (path, run_id, self.policy, self.state())


def _unpickled(
    path: str | None, run_id: str | None, policy: Policy, state: Mapping[str, Json]
) -> Recorder:
    run = None
    if path is not None and run_id is not None:
        try:
            run = open_store(path).get_run(run_id)
        except (BegatError, OSError) as error:
            warn(f"this copy of a recorder records nothing: {error}")
    recorder = Recorder(run, policy)
    recorder.restore(state)
    return recorder
