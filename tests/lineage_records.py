"""A small world of versions, runs and edges, built a sentence at a time, for tests of what is pure over them."""

from __future__ import annotations

from msgspec.structs import replace

from begat.lineage import Graph
from begat.model import Digest, Edge, EdgeKind, RunRecord, RunStatus, VersionRecord, VersionState
from begat.reference import parse_reference

SECOND = 1_000_000


class World:
    """What a catalog would know; every act is one second after the one before."""

    def __init__(self) -> None:
        self.versions: dict[str, VersionRecord] = {}
        self.runs: dict[str, RunRecord] = {}
        self.edges: list[Edge] = []
        self.aliases: dict[str, str] = {}
        self._now = 1_700_000_000 * SECOND

    def run(
        self, name: str, *, status: RunStatus = "finished", job: str | None = None
    ) -> RunRecord:
        uid = f"run-{len(self.runs):06d}"
        at = self._tick()
        record = RunRecord(
            uid=uid,
            name=name,
            job=job,
            status=status,
            parent_uid=None,
            started_at=at,
            ended_at=None if status == "running" else at + 2 * SECOND,
            heartbeat_at=at,
            params={"lr": 0.1},
            metrics={},
            tags=(),
            git={},
            command={},
            environment={},
            error=None,
            host="host",
            pid=1,
            process_started="",
            user="ada",
        )
        self.runs[uid] = record
        return record

    def version(
        self,
        name: str,
        *,
        content: str | None = None,
        by: RunRecord | None = None,
        type: str = "dataset",
        size_bytes: int = 21_300,
    ) -> VersionRecord:
        """The next version of a name; with content of its own unless told. `by` gives it a made edge."""
        number = 1 + sum(version.name == name for version in self.versions.values())
        digest = Digest("b3:" + (content or f"{name}-{number}"))
        record = VersionRecord(
            uid=f"version-{len(self.versions):06d}",
            artifact_uid=f"artifact-{name}",
            name=name,
            type=type,
            number=number,
            digest=digest,
            root=digest,
            version=None,
            description=None,
            metadata={},
            size_bytes=size_bytes,
            new_bytes=size_bytes,
            shared_bytes=0,
            file_count=1,
            state="live",
            run_uid=by.uid if by else None,
            created_at=self._tick(),
            aliases=(),
            tags=(),
            is_latest=False,
        )
        self.versions[record.uid] = record
        if by:
            self._edge(by, record, "made")
        return record

    def make(
        self,
        name: str,
        *inputs: VersionRecord | tuple[VersionRecord, str | None],
        content: str | None = None,
        run: str | None = None,
        type: str = "dataset",
    ) -> VersionRecord:
        """A version made by a run of its own; an input is a version, or (version, what was asked for)."""
        by = self.run(run or f"make-{name}")
        self.use(by, *inputs)
        return self.version(name, content=content, by=by, type=type)

    def use(
        self, run: RunRecord, *inputs: VersionRecord | tuple[VersionRecord, str | None]
    ) -> None:
        for one in inputs:
            version, requested = one if isinstance(one, tuple) else (one, f"{one.name}:latest")
            self._edge(run, version, "used", requested=requested)

    def confirm(self, run: RunRecord, version: VersionRecord) -> None:
        self._edge(run, version, "confirmed")

    def set_alias(self, version: VersionRecord, alias: str) -> None:
        self.aliases[f"{version.name}:{alias}"] = version.uid

    def set_state(self, version: VersionRecord, state: VersionState) -> VersionRecord:
        self.versions[version.uid] = replace(version, state=state)
        return self.versions[version.uid]

    def current(self, text: str) -> VersionRecord | None:
        """What a reference means now, as the catalog would resolve it."""
        reference = parse_reference(text)
        mine = [
            version
            for version in self.versions.values()
            if version.name == reference.name and version.state != "deleted"
        ]
        if reference.kind == "alias":
            return self.versions.get(self.aliases.get(text, ""))
        if reference.kind == "number":
            return next((one for one in mine if one.number == reference.number), None)
        assert reference.kind == "latest"
        return max(mine, key=lambda version: version.number, default=None)

    def heads(self) -> list[VersionRecord]:
        """The latest and the aliased versions, in the order in which they were made."""
        names = {version.name for version in self.versions.values()}
        latest = {one.uid for name in names if (one := self.current(f"{name}:latest"))}
        return [
            one for one in self.versions.values() if one.uid in latest | {*self.aliases.values()}
        ]

    def graph(self, *roots: VersionRecord | RunRecord) -> Graph:
        return Graph(self.versions, self.runs, tuple(self.edges), tuple(one.uid for one in roots))

    def _edge(
        self, run: RunRecord, version: VersionRecord, kind: EdgeKind, requested: str | None = None
    ) -> None:
        position = 1 + sum(edge.run_uid == run.uid for edge in self.edges)
        at = self._tick()
        self.edges.append(Edge(run.uid, version.uid, kind, position, at, requested=requested))

    def _tick(self) -> int:
        self._now += SECOND
        return self._now


def digits_world() -> World:
    """The story of the README: a dataset, a model made from it, predictions made from both."""
    world = World()
    digits = world.version("digits")
    model = world.make("digits-model", digits, run="train", type="model")
    world.set_alias(model, "best")
    world.make(
        "digits-predictions",
        (model, "digits-model:best"),
        digits,
        run="predict",
        type="predictions",
    )
    return world
