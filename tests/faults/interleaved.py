"""Garbage collection of one handle, and between any two steps of it whatever another handle may do to the same content.

    gc (one handle)    plan      copy      copy      slice     slice  ...
    the other handle        act       act       act       act

Nothing runs at the same time: a log that is at work during a step of gc waits before its commit, and goes on at a later
one. So what is done follows from the seed alone. All large files are made of a few blocks and are stored in three ways,
which share what they can; now and then one is damaged and logged again.
"""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest

import begat
from begat import identity, locks, objects, split
from begat import sweep as sweep_module
from begat.catalog.commits import Commits
from begat.model import Commit, NewVersion
from trees import safetensors

Content: TypeAlias = Mapping[str, bytes]

BLOCK_BYTES = 512 * 1024
_DICE = random.Random(1)
BLOCKS = [_DICE.randbytes(BLOCK_BYTES) for _ in range(5)]
NOTES = [_DICE.randbytes(2_000) for _ in range(4)]
# Cut at tensors, by content, and at equal distances.
ENDINGS = [".safetensors", ".bin", ".gz"]
NAMES = ["a", "b"]
PATIENCE_S = 120.0


class _LateLog(threading.Thread):
    """A log that has stored its bytes, and waits before its commit until it is told to go on."""

    def __init__(self, log: Callable[[], begat.Version]) -> None:
        super().__init__()
        self._log = log
        self.is_staged, self.may_commit = threading.Event(), threading.Event()
        self.made: list[begat.Version] = []
        self.error: BaseException | None = None
        self.start()
        assert self.is_staged.wait(PATIENCE_S)

    def run(self) -> None:
        try:
            self.made.append(self._log())
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self.error = error
        finally:
            self.is_staged.set()

    def finish(self) -> begat.Version:
        self.may_commit.set()
        self.join(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.made[0]


@dataclass
class World:
    """A store, two handles of it, and what must be in it."""

    path: Path
    seed: int
    told: list[str] = field(default_factory=list[str])
    contents: dict[str, Content] = field(default_factory=dict[str, Content])
    live: dict[str, str] = field(default_factory=dict[str, str])  # uid -> reference
    late: list[tuple[_LateLog, Content]] = field(default_factory=list[Any])
    moves: int = 0  # how often gc let its catalog name a new pack

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.stores = [begat.open_store(self.path) for _ in range(2)]

    # --- what is done ---

    def act(self) -> None:
        """Something, with either handle."""
        acts = [self.log, self.log, self.log_again, self.log_again, self.start_late_log]
        acts += [self.delete, self.delete, self.delete, self.retire, self.damage, self.mend]
        self.dice.choice(acts)()

    def log(self) -> None:
        content: dict[str, bytes] = {}
        for path in self.dice.sample("xyz", self.dice.randint(1, 2)):
            blocks = self.dice.choices(BLOCKS, k=self.dice.randint(2, 4))
            content[path + self.dice.choice(ENDINGS)] = safetensors(blocks)
        if self.dice.random() < 0.6:
            # So much that the pack of the rest is worth writing anew without it.
            content["filler"] = self.dice.randbytes(self.dice.randrange(100_000, 900_000))
        if self.dice.random() < 0.6:
            content["note"] = self.dice.choice(NOTES)
        self._log(content)

    def log_again(self) -> None:
        """Some content that was there once, as it was or with large files that are stored in another way."""
        content = self._known()
        if content is not None:
            self._log(content)

    def start_late_log(self) -> None:
        content = self._known()
        if content is not None:
            log = self._logging(content)
            self._say("late", sorted(content))
            self.late.append((_LateLog(log), content))

    def finish_late_logs(self) -> None:
        self.dice.shuffle(self.late)
        while self.late:
            late, content = self.late.pop()
            self._note(late.finish(), content)

    def delete(self) -> None:
        if self.live:
            uid = self.dice.choice(list(self.live))
            self._say("delete", self.live[uid])
            self._store().delete(self.live.pop(uid))

    def retire(self) -> None:
        if self.live:
            uid = self.dice.choice(list(self.live))
            self._say("retire", self.live[uid])
            self._store().catalog.labels.retire(uid, by="test")
            del self.live[uid]

    def damage(self) -> None:
        """One byte of something that a version needs is another one; who verifies finds out."""
        if not self.live:
            return
        uid = self.dice.choice(list(self.live))
        store = self._store()
        record = self.dice.choice(store.catalog.bytes.held_objects(uid))
        path = store.path / "objects" / record.name
        if record.state != "live" or not path.exists():
            return
        blob = self.dice.choice(store.catalog.bytes.blobs_in(record.name))
        self._say("damage", record.name, blob.kind)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(blob.offset + blob.stored_length // 2)
            [byte] = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 16]))
        path.chmod(0o444)
        store.verify()

    def mend(self) -> None:
        """Log the content of all that is damaged again."""
        store = self._store()
        for record in list(store.catalog.bytes.all_objects()):
            if record.state != "live":
                for version in store.catalog.bytes.versions_holding(record.name):
                    self._say("mend", version.ref)
                    self._log(self.contents[version.uid], name="mended")

    def collect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Collect garbage; something else may be done between any two steps of it."""
        self._say("gc")
        with monkeypatch.context() as patch:
            _interrupt(patch, self)
            self._store().gc(dry_run=False, wait=10)
        self.finish_late_logs()

    def moment(self) -> None:
        """Between two steps of gc."""
        while self.dice.random() < 0.5:
            self.act()

    # --- what must be true ---

    def check(self) -> None:
        """All that should be there is there, whoever reads it."""
        self.mend()
        self._say("check")
        assert self.stores[0].verify().damaged == ()
        self.compare(self.stores[1])

    def compare(self, store: begat.Store) -> None:
        for uid, ref in self.live.items():
            version = store.get_artifact(ref)
            found = {entry.path: version.read_bytes(entry.path) for entry in version.entries}
            assert found == self.contents[uid], ref

    def close(self) -> None:
        for late, _ in self.late:
            late.may_commit.set()
            late.join(PATIENCE_S)
        for store in self.stores:
            store.close()

    # --- inside ---

    def _store(self) -> begat.Store:
        return self.dice.choice(self.stores)

    def _known(self) -> Content | None:
        if not self.contents:
            return None
        content = self.dice.choice(list(self.contents.values()))
        if self.dice.random() < 0.5:
            return content
        return {
            f"{path[0]}{self.dice.choice(ENDINGS)}" if path[1] == "." else path: data
            for path, data in content.items()
        }

    def _log(self, content: Content, name: str = "") -> None:
        self._note(self._logging(content, name)(), content)

    def _logging(self, content: Content, name: str = "") -> Callable[[], begat.Version]:
        draft = begat.Artifact(name or self.dice.choice(NAMES))
        for path, data in content.items():
            draft.add(data, path)
        store = self._store()
        how: Literal["reuse", "new"] = "reuse" if self.dice.random() < 0.5 else "new"
        self._say("log", draft.name, sorted(content), how)
        return lambda: store.log_artifact(draft, if_unchanged=how)

    def _note(self, version: begat.Version, content: Content) -> None:
        self._say("made", version.ref)
        self.contents[version.uid] = content
        self.live[version.uid] = version.ref

    def _say(self, *what: object) -> None:
        self.told.append(" ".join(str(one) for one in what))


def _interrupt(patch: pytest.MonkeyPatch, world: World) -> None:
    """Let `world` act after gc has planned, before and after each copy, and before each slice, which has one step."""
    copied, exclusive = sweep_module._Sweep._copied, locks.SweepLock.exclusive
    move = sweep_module._Sweep._move

    def copied_amid(self: Any, *args: Any) -> Any:
        world.moment()
        found = copied(self, *args)
        world.moment()
        return found

    @contextlib.contextmanager
    def exclusive_amid(self: Any) -> Generator[locks.Slice]:
        world.moment()
        world.finish_late_logs()
        if world.dice.random() < 0.3:
            world.delete()
        with exclusive(self, slice_s=0.0) as slice_:
            yield slice_

    def counted(self: Any, *args: Any) -> None:
        world.moves += 1
        world._say("move")
        move(self, *args)

    patch.setattr(sweep_module._Sweep, "_copied", copied_amid)
    patch.setattr(sweep_module._Sweep, "_move", counted)
    patch.setattr(locks.SweepLock, "exclusive", exclusive_amid)


class _Secrets:
    """What looks random, and is the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def randbits(self, count: int) -> int:
        return self._dice.getrandbits(count)

    def token_hex(self, count: int) -> str:
        return self._dice.randbytes(count).hex()


def play(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, *, rounds: int, acts: int
) -> World:
    """Some rounds: a few acts, then gc with more of them in between, then all is compared."""
    monkeypatch.setattr(locks, "_OPEN_AT_LEAST_S", 0.0)
    # Ids and names of objects decide in which order they are looked at.
    for module in (identity, objects):
        monkeypatch.setattr(module, "secrets", _Secrets(seed))
    monkeypatch.setattr(
        time, "time_ns", itertools.count(1_700_000_000_000_000_000, 1_000_000).__next__
    )
    monkeypatch.setattr(split, "CUT_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(sweep_module, "TARGET_BYTES", 400_000)
    monkeypatch.setattr(Commits, "commit", _waiting(Commits.commit))
    world = World(path, seed)
    try:
        for _ in range(rounds):
            for _ in range(acts):
                world.act()
            world.collect(monkeypatch)
            world.check()
    except BaseException as error:
        error.add_note(f"seed {seed}:\n" + "\n".join(world.told))
        raise
    finally:
        world.close()
    return world


def _waiting(commit: Callable[[Commits, NewVersion], Commit]) -> Any:
    def committed(self: Commits, new: NewVersion) -> Commit:
        late = threading.current_thread()
        if isinstance(late, _LateLog) and not late.may_commit.is_set():
            late.is_staged.set()
            assert late.may_commit.wait(PATIENCE_S)
        return commit(self, new)

    return committed
