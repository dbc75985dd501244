"""Whatever is done in whatever order, a store says and gives back what a plain dict would."""

import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import begat
from begat.errors import (
    AliasMoved,
    AliasReserved,
    BytesRetired,
    VersionDeleted,
    VersionNotFound,
)
from trees import memory_folder

MIB = 1 << 20
NAMES = ["data", "model/a"]
ALIASES = ["best", "prod"]
RANDOM = random.Random(1)
LEFT, RIGHT, OTHER = (RANDOM.randbytes(4 * MIB) for _ in range(3))
# Contents that share files, small and large, in any combination.
PIECES = {
    "a": [b"", b"one", b"two"],
    "d/b": [b"one", b"three" * 20_000],
    "large.bin": [RANDOM.randbytes(MIB + n) for n in range(2)],
    # Cut every 4 MiB: three files of which each pair shares a half, so that packs of parts die by halves.
    "grown.bin": [LEFT + RIGHT, LEFT + OTHER, OTHER + RIGHT],
    # Just too small for an object of its own: packs that are worth writing anew.
    "medium.bin": [RANDOM.randbytes(MIB - 1) for _ in range(3)],
}
contents = st.fixed_dictionaries(
    {}, optional={path: st.integers(0, len(pieces) - 1) for path, pieces in PIECES.items()}
)
metadata = st.sampled_from([{}, {"rows": 1}])
names = st.sampled_from(NAMES)
aliases = st.sampled_from(ALIASES)
handles = st.integers(0, 1)
picks = st.integers(0, 1000)
Content = dict[str, int]


@dataclass
class Known:
    """What a version should be."""

    name: str
    number: int
    uid: str
    content: Content
    metadata: dict[str, object]
    state: str = "live"
    aliases: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    is_used: bool = False

    @property
    def ref(self) -> str:
        return f"{self.name}:v{self.number}"

    @property
    def files(self) -> dict[str, bytes]:
        return {path: PIECES[path][index] for path, index in self.content.items()}


def has_versions(machine: "StoreMachine") -> bool:
    return bool(machine.all_known())


def use(store: begat.Store, known: Known) -> None:
    with store.start_run("user") as run:
        assert run.use_artifact(known.ref).uid == known.uid


class StoreMachine(RuleBasedStateMachine):
    """Two handles on one store, and a dict of what should be in it."""

    template: Path  # an empty store to begin with: making one costs more than an example
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, list[Known]] = {name: [] for name in NAMES}

    @initialize()
    def begin(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=self.root)) / "store"
        shutil.copytree(self.template, self.path)
        self.stores = [begat.open_store(self.path), begat.open_store(self.path)]

    def teardown(self) -> None:
        try:
            for known in self.all_known():
                self.check(known, self.stores[0])
            assert self.stores[0].verify().damaged == ()
            for store in self.stores:
                store.close()
        finally:
            shutil.rmtree(self.path.parent)

    # --- what is done ---

    @rule(
        name=names,
        several=st.lists(st.tuples(contents, metadata), min_size=1, max_size=3),
        handle=handles,
        labels=st.sets(aliases),
    )
    def log(
        self,
        name: str,
        several: list[tuple[Content, dict[str, object]]],
        handle: int,
        labels: set[str],
    ) -> None:
        for content, meta in several:
            self.logged(name, content, meta, handle, labels=labels)

    @precondition(has_versions)
    @rule(
        pick=picks,
        of=st.sampled_from(["latest", "any"]),
        how=st.sampled_from(["reuse", "reuse", "new"]),
        handle=handles,
    )
    def log_known_content_again(
        self, pick: int, of: str, how: Literal["reuse", "new"], handle: int
    ) -> None:
        known = self.pick(pick)
        if of == "latest":
            known = self.latest(known.name) or known
        self.logged(known.name, known.content, known.metadata, handle, how=how)

    @precondition(has_versions)
    @rule(pick=picks, content=contents, gone=st.sets(st.sampled_from(list(PIECES))), handle=handles)
    def log_a_draft(self, pick: int, content: Content, gone: set[str], handle: int) -> None:
        known = self.pick(pick)
        if known.state in ("deleted", "bytes-gone"):
            return
        draft = self.stores[1 - handle].get_artifact(known.ref).draft()
        for path in gone & known.content.keys():
            draft.remove(path)
        for path, index in content.items():
            draft.add(PIECES[path][index], path, overwrite=True)
        after = {path: i for path, i in known.content.items() if path not in gone} | content
        self.expect_logged(
            known.name, after, known.metadata, lambda: self.stores[handle].log_artifact(draft)
        )

    @precondition(has_versions)
    @rule(
        pick=picks,
        alias=aliases,
        handle=handles,
        expect=st.sampled_from(["any", "any", "absent", 1, 2]),
    )
    def move_an_alias(self, pick: int, alias: str, handle: int, expect: str | int) -> None:
        known = self.pick(pick)
        holder = self.holder(known.name, alias)
        wanted = {"any": begat.ANY, "absent": begat.ABSENT}.get(str(expect), f"v{expect}")
        fits = expect == "any" or (holder.number if holder else "absent") == expect
        act = functools.partial(self.stores[handle].alias, known.ref, alias, expect=wanted)
        if known.state == "deleted":
            refused(act, VersionDeleted)
        elif known.state == "bytes-gone":
            refused(act, BytesRetired)
        elif not fits:
            refused(act, AliasMoved)
        else:
            act()
            self.put_alias(known, alias)

    @precondition(has_versions)
    @rule(pick=picks, alias=aliases, handle=handles)
    def remove_an_alias(self, pick: int, alias: str, handle: int) -> None:
        name = self.pick(pick).name
        holder = self.holder(name, alias)
        act = functools.partial(self.stores[handle].remove_alias, name, alias)
        if holder is None:
            refused(act, VersionNotFound)
        else:
            act()
            holder.aliases.discard(alias)

    @precondition(has_versions)
    @rule(pick=picks, tag=st.sampled_from(["keep", ""]), handle=handles)
    def tag_or_use(self, pick: int, tag: str, handle: int) -> None:
        known, store = self.pick(pick), self.stores[handle]
        if known.state == "deleted":
            return
        if tag:
            act = functools.partial(store.get_artifact(known.ref).add_tags, tag)
        else:
            act = functools.partial(use, store, known)
        if known.state == "bytes-gone":
            refused(act, BytesRetired)
            return
        act()
        known.tags |= {tag} if tag else set()
        known.is_used |= not tag

    @precondition(has_versions)
    @rule(pick=picks, force=st.booleans(), handle=handles)
    def delete(self, pick: int, force: bool, handle: int) -> None:
        known = self.pick(pick)
        act = functools.partial(self.stores[handle].delete, known.ref, force=force)
        if known.state == "deleted":
            refused(act, VersionDeleted)
        elif known.aliases and not force:
            refused(act, AliasReserved)
        else:
            act()
            known.state = "deleted"
            known.aliases.clear()

    @precondition(has_versions)
    @rule(several=st.lists(picks, min_size=1, max_size=4), handle=handles)
    def retire_and_collect_garbage(self, several: list[int], handle: int) -> None:
        store = self.stores[handle]
        for known in map(self.pick, several):
            if known.state != "deleted":
                store.catalog.labels.retire(known.uid, by="test")
                known.state = "retired" if known.state == "live" else known.state
        before = on_disk(self.path)
        assert store.gc().dry_run
        assert on_disk(self.path) == before
        report = store.gc(dry_run=False, wait=10)
        assert before - on_disk(self.path) == report.freed_bytes
        for known in self.all_known():
            if known.state == "retired" and not (known.aliases or known.tags or known.is_used):
                known.state = "bytes-gone"
        if not any(known.state in ("live", "retired") for known in self.all_known()):
            assert on_disk(self.path) == 0

    # --- what is asked ---

    @precondition(has_versions)
    @rule(pick=picks, handle=handles)
    def look(self, pick: int, handle: int) -> None:
        known, store = self.pick(pick), self.stores[handle]
        self.check(known, store)
        name, versions = known.name, self.known[known.name]
        kept = [known for known in versions if known.state != "deleted"]
        assert [v.uid for v in store.versions(name)] == [known.uid for known in kept]
        assert [v.uid for v in store.versions(name, with_deleted=True)] == [v.uid for v in versions]
        if kept:
            assert store.get_artifact(name).uid == kept[-1].uid
        else:
            refused(lambda: store.get_artifact(name), VersionNotFound)
        for alias in ALIASES:
            holder = self.holder(name, alias)
            moves = store.alias_history(name, alias)
            assert (moves[-1].to_number if moves else None) == (holder.number if holder else None)
            if holder:
                assert store.get_artifact(f"{name}:{alias}").uid == holder.uid
            else:
                refused(lambda alias=alias: store.get_artifact(f"{name}:{alias}"), VersionNotFound)

    @rule(handle=handles)
    def verify_and_open_again(self, handle: int) -> None:
        assert self.stores[handle].verify().damaged == ()
        self.stores[handle].close()
        self.stores[handle] = begat.open_store(self.path)

    # --- inside ---

    def logged(
        self,
        name: str,
        content: Content,
        meta: dict[str, object],
        handle: int,
        *,
        how: Literal["reuse", "new"] = "reuse",
        labels: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        artifact = begat.Artifact(name, metadata=meta, aliases=sorted(labels))
        for path, index in content.items():
            artifact.add(PIECES[path][index], path)
        log = functools.partial(self.stores[handle].log_artifact, artifact, if_unchanged=how)
        self.expect_logged(name, content, meta, log, how=how, labels=labels)

    def expect_logged(
        self,
        name: str,
        content: Content,
        meta: dict[str, object],
        log: Callable[[], begat.Version],
        *,
        how: Literal["reuse", "new"] = "reuse",
        labels: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        versions, latest = self.known[name], self.latest(name)
        files = {path: PIECES[path][index] for path, index in content.items()}
        is_same = latest is not None and (latest.files, latest.metadata) == (files, meta)
        version = log()
        note(f"{version.ref} is_new={version.is_new}")
        if is_same and how == "reuse":
            assert latest is not None
            assert (version.is_new, version.uid) == (False, latest.uid)
            latest.state = "live"
            known = latest
        else:
            known = Known(name, len(versions) + 1, version.uid, dict(content), meta)
            assert version.is_new
            assert version.number == known.number
            versions.append(known)
        for label in labels:
            self.put_alias(known, label)

    def put_alias(self, known: Known, alias: str) -> None:
        for other in self.known[known.name]:
            other.aliases.discard(alias)
        known.aliases.add(alias)

    def check(self, known: Known, store: begat.Store) -> None:
        if known.state == "deleted":
            refused(lambda: store.get_artifact(known.ref), VersionDeleted)
            return
        version = store.get_artifact(known.ref)
        seen = replace(
            known,
            uid=version.uid,
            metadata=dict(version.metadata),
            state=version.state,
            aliases=set(version.aliases) - {"latest"},
            tags=set(version.tags),
        )
        assert seen == known
        if known.state == "bytes-gone":
            refused(lambda: version.entries, BytesRetired)
        else:
            assert {e.path: version.read_bytes(e.path) for e in version.entries} == known.files

    def all_known(self) -> list[Known]:
        return [known for versions in self.known.values() for known in versions]

    def pick(self, pick: int) -> Known:
        known = self.all_known()
        return known[pick % len(known)]

    def latest(self, name: str) -> Known | None:
        return next((v for v in reversed(self.known[name]) if v.state != "deleted"), None)

    def holder(self, name: str, alias: str) -> Known | None:
        return next((known for known in self.known[name] if alias in known.aliases), None)


def refused(act: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        act()


def on_disk(store: Path) -> int:
    """Bytes of everything but the catalog and the locks."""
    folders = [store / name for name in ("objects", "tmp", "damaged", "staging")]
    return sum(
        file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()
    )


def test_a_store_behaves_like_a_dict_of_dicts(tmp_path: Path) -> None:
    with memory_folder(tmp_path) as root:
        with begat.open_store(root / "template"):
            pass
        machine = type("Machine", (StoreMachine,), {"template": root / "template", "root": root})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=200 if os.environ.get("CI") else 20,
                stateful_step_count=25,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
