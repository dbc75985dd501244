"""Which versions were made from inputs that have moved on, and why.

The rules:

- An input asked for by `latest` or an alias is *behind* when that reference now means other content (another digest).
  One asked for by number, label or digest is compared with the artifact's latest, or left out with `ignore_pinned`.
  Asked for in several ways, it is behind by any of them.
- A version is stale when an input is behind, or is stale itself.
- Early cutoff: what counts is content. When any run made or confirmed the same content of the same artifact from
  inputs that are all current, every version with that content is fresh.
- A version never makes its own successor outdated: an input of the artifact that is made (a model trained further, a
  dataset extended) is not compared, and neither is one whose reference now means what the same run had made before.
  Otherwise work that continues earlier work would be stale for ever, whatever is re-run.
- A version that no run made is never stale. A confirmation without any compared input proves nothing.

Pure: `current` says what a reference means now. The graph must hold the edges of the runs that made *and confirmed* the
versions, upstream of the heads; an input that it does not hold is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from begat.errors import BadReference
from begat.lineage import Graph
from begat.model import Digest, Edge, VersionRecord
from begat.reference import Reference, parse_reference

Current = Callable[[str], VersionRecord | None]

MOST_LINKS = 5  # of a reason, before its middle is left out


@dataclass(frozen=True, slots=True)
class Behind:
    """An input that has moved on: what was used, how it was asked for, what that means now."""

    input: VersionRecord
    requested: str
    now: VersionRecord


@dataclass(frozen=True, slots=True)
class Stale:
    """A version made from outdated inputs.

    `behind` holds the inputs that moved on, nearest first. `steps` counts to the nearest: 1 is an input of the version
    itself, 2 an input of an input. `reason` is one sentence about that one.
    """

    ref: str
    version: VersionRecord
    behind: tuple[Behind, ...]
    steps: int
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a version is or is not stale, as lines to print; `stale` is None if it is not."""

    ref: str
    is_stale: bool
    lines: tuple[str, ...]
    stale: Stale | None


def find_stale(
    heads: Iterable[VersionRecord], graph: Graph, current: Current, *, ignore_pinned: bool = False
) -> list[Stale]:
    """Those of the heads that are stale, in the order given.

    `current` resolves text such as `digits:best` to the version it means now, or None; it is called once a text.
    """
    unique = list({version.uid: version for version in heads}.values())
    judgement = _Judgement(unique, graph, current, ignore_pinned=ignore_pinned)
    return [judgement.stale(head) for head in unique if head.uid in judgement.steps]


def explain(
    version: VersionRecord, graph: Graph, current: Current, *, ignore_pinned: bool = False
) -> Explanation:
    """Whether and why one version is stale, each of its inputs in a line."""
    judgement = _Judgement([version], graph, current, ignore_pinned=ignore_pinned)
    stale = judgement.stale(version) if version.uid in judgement.steps else None
    lines = tuple(judgement.lines(version))
    return Explanation(version.ref, stale is not None, lines, stale)


@dataclass(frozen=True, slots=True)
class _Input:
    """One question for an input: with `behind` if it moved on, `is_compared` False if it is left out."""

    version: VersionRecord
    remark: str
    is_compared: bool = True
    behind: Behind | None = None


@dataclass(frozen=True, slots=True)
class _Production:
    """A run came to a version from these inputs."""

    edge: Edge
    version: VersionRecord
    inputs: tuple[_Input, ...]

    @property
    def compared(self) -> list[_Input]:
        return [one for one in self.inputs if one.is_compared]


class _Judgement:
    """What is stale upstream of some versions, found in one pass over the edges."""

    def __init__(
        self, heads: list[VersionRecord], graph: Graph, current: Current, *, ignore_pinned: bool
    ) -> None:
        self._graph = graph
        self._current = current
        self._ignore_pinned = ignore_pinned
        self._now: dict[str, VersionRecord | None] = {}
        self._productions = self._upstream_of(heads)
        self._proofs: dict[tuple[str, Digest], _Production] = {}
        fresh = self._fresh()
        self._stale = {uid for uid in self._productions if uid not in fresh}
        self.steps = self._count_steps()

    # --- what the answer is made of ---

    def stale(self, head: VersionRecord) -> Stale:
        return Stale(
            ref=head.ref,
            version=head,
            behind=tuple(self._roots(head)),
            steps=self.steps[head.uid],
            reason=self._reason(head),
        )

    def lines(self, head: VersionRecord) -> Iterator[str]:
        """The verdict; then the inputs of the version, and of each stale input on the way up."""
        if head.uid in self.steps:
            yield f"{head.ref} is stale: {self._reason(head)}"
        else:
            yield f"{head.ref} is up to date"
        proof = self._proofs.get(_content(head))
        if head.uid not in self.steps and proof and proof.version.uid != head.uid:
            yield f"{proof.version.ref} has the same content, from current inputs"
        waiting = deque([head])
        told = {head.uid}
        while waiting:
            version = waiting.popleft()
            yield from self._production_lines(version)
            for one in self._inputs(version.uid):
                if self._is_stale_input(one) and one.version.uid not in told:
                    told.add(one.version.uid)
                    waiting.append(one.version)

    def _production_lines(self, version: VersionRecord) -> Iterator[str]:
        productions = self._productions.get(version.uid, ())
        if not any(production.edge.kind == "made" for production in productions):
            yield f"{version.ref} was made by no known run, so it is never stale"
        for production in productions:
            act = "made" if production.edge.kind == "made" else "confirmed"
            run = self._graph.runs[production.edge.run_uid].name
            if not production.inputs:
                yield f"{version.ref} was {act} by {run!r} from no recorded input"
            for one in production.inputs:
                remark = f"{one.remark}, but stale" if self._is_stale_input(one) else one.remark
                yield f"{version.ref} was {act} by {run!r} from {_named(one.version)}: {remark}"

    # --- inputs ---

    def _upstream_of(self, heads: list[VersionRecord]) -> dict[str, list[_Production]]:
        """The productions of the heads, of what they were made from, and of all with the same content; newest first."""
        found: dict[str, list[_Production]] = {}
        waiting = [head.uid for head in heads]
        while waiting:
            uid = waiting.pop()
            if uid in found or uid not in self._graph.versions:
                continue
            found[uid] = self._productions_of(self._graph.versions[uid])
            waiting += [twin.uid for twin in self._twins[_content(self._graph.versions[uid])]]
            waiting += [one.version.uid for made in found[uid] for one in made.compared]
        return found

    @cached_property
    def _twins(self) -> dict[tuple[str, Digest], list[VersionRecord]]:
        """All versions with one content of one artifact."""
        twins: dict[tuple[str, Digest], list[VersionRecord]] = {}
        for version in self._graph.versions.values():
            twins.setdefault(_content(version), []).append(version)
        return twins

    def _productions_of(self, version: VersionRecord) -> list[_Production]:
        edges = [
            *self._graph.edges_of_version(version.uid, "made"),
            *self._graph.edges_of_version(version.uid, "confirmed"),
        ]
        edges.sort(key=lambda edge: (edge.at, edge.run_uid, edge.position), reverse=True)
        return [
            _Production(
                edge,
                version,
                tuple(
                    self._judge_input(used, given, edge, version)
                    for used, given in self._graph.questions_before(edge)
                ),
            )
            for edge in edges
        ]

    def _judge_input(
        self, used: Edge, given: VersionRecord, edge: Edge, made: VersionRecord
    ) -> _Input:
        asked = _asked(used, given)
        if given.artifact_uid == made.artifact_uid:
            return _Input(given, "an earlier version of itself, not compared", is_compared=False)
        if asked.is_pinned and self._ignore_pinned:
            return _Input(given, f"asked for as {asked}, not compared", is_compared=False)
        text = f"{given.name}:latest" if asked.is_pinned else str(asked)
        now = self._means(text)
        if now is None:
            gone = (
                f"{text} no longer exists" if text != f"{given.name}:latest" else "all are deleted"
            )
            return _Input(given, f"asked for as {asked}; {gone}, so there is nothing newer")
        if now.digest == given.digest:
            same = (
                f"{text} is still this"
                if now.uid == given.uid
                else f"{text} is {now.ref}, equal content"
            )
            return _Input(given, same)
        if now.run_uid == edge.run_uid and now.created_at <= edge.at:
            return _Input(given, f"{text} is now {now.ref}, which the same run had made before")
        behind = Behind(given, used.requested or text, now)
        return _Input(given, f"{text} is now {now.ref}", behind=behind)

    def _means(self, text: str) -> VersionRecord | None:
        if text not in self._now:
            self._now[text] = self._current(text)
        return self._now[text]

    def _is_stale_input(self, one: _Input) -> bool:
        return one.is_compared and one.behind is None and one.version.uid in self.steps

    # --- freshness ---

    def _fresh(self) -> set[str]:
        """The uids of fresh versions: the least set that the rules make fresh.

        Counting down what each production still waits for (Dowling and Gallier 1984, linear-time Horn satisfiability)
        needs no order of the versions. That matters, because a confirmation may depend on what came from the version it
        confirms; such a circle alone makes nothing fresh.
        """
        fresh: set[str] = set()
        ready: list[str] = []
        waits: dict[int, int] = {}
        waiting_for: dict[str, list[_Production]] = {}
        for uid, productions in self._productions.items():
            if not any(one.edge.kind == "made" and one.compared for one in productions):
                ready.append(uid)
            for production in productions:
                compared = production.compared
                if any(one.behind for one in compared):
                    continue
                waits[id(production)] = len(compared)
                for one in compared:
                    waiting_for.setdefault(one.version.uid, []).append(production)
        while ready:
            uid = ready.pop()
            if uid in fresh:
                continue
            fresh.add(uid)
            for production in waiting_for.get(uid, ()):
                waits[id(production)] -= 1
                if not waits[id(production)]:
                    self._proofs.setdefault(_content(production.version), production)
                    ready += [twin.uid for twin in self._twins[_content(production.version)]]
        return fresh

    def _count_steps(self) -> dict[str, int]:
        """For each stale version, how many steps away the nearest input is that moved on."""
        steps: dict[str, int] = {}
        users: dict[str, list[str]] = {}
        level: list[str] = []
        for uid in self._productions:
            if uid not in self._stale:
                continue
            for one in self._inputs(uid):
                if one.behind:
                    level.append(uid)
                elif one.version.uid in self._stale:
                    users.setdefault(one.version.uid, []).append(uid)
        distance = 0
        while level:
            distance += 1
            new = [uid for uid in dict.fromkeys(level) if uid not in steps]
            steps.update(dict.fromkeys(new, distance))
            level = [user for uid in new for user in users.get(uid, ())]
        return steps

    def _inputs(self, uid: str) -> Iterator[_Input]:
        for production in self._productions.get(uid, ()):
            yield from production.compared

    # --- reasons ---

    def _roots(self, head: VersionRecord) -> Iterator[Behind]:
        told: set[tuple[str, str, str]] = set()
        seen = {head.uid}
        waiting = deque([head.uid])
        while waiting:
            for one in self._inputs(waiting.popleft()):
                if one.behind:
                    key = (one.behind.input.uid, one.behind.requested, one.behind.now.uid)
                    if key not in told:
                        told.add(key)
                        yield one.behind
                elif one.version.uid in self.steps and one.version.uid not in seen:
                    seen.add(one.version.uid)
                    waiting.append(one.version.uid)

    def _reason(self, head: VersionRecord) -> str:
        """`a:v1 was made from b:v1, which was made from c:v1; c:latest is now c:v2`."""
        links: list[str] = []
        uid = head.uid
        while True:
            production, one = self._next_link(uid)
            act = "made" if production.edge.kind == "made" else "confirmed"
            links.append(f"was {act} from {_named(one.version)}")
            if one.behind:
                break
            uid = one.version.uid
        if len(links) > MOST_LINKS:
            left_out = len(links) - MOST_LINKS + 1
            links[2 : 2 + left_out] = [f"(through {left_out} more)"]
        path = ", which ".join(links).replace(", which (", " (").replace("), which", "), which")
        return f"{head.ref} {path}; {one.remark}"

    def _next_link(self, uid: str) -> tuple[_Production, _Input]:
        """The step from a stale version towards the nearest input that moved on; the newest production tells it."""
        left = self.steps[uid]
        return next(
            (production, one)
            for production in self._productions[uid]
            for one in production.compared
            if (one.behind and left == 1)
            or (not one.behind and self.steps.get(one.version.uid) == left - 1)
        )


def _content(version: VersionRecord) -> tuple[str, Digest]:
    return version.artifact_uid, version.digest


def _asked(used: Edge, given: VersionRecord) -> Reference:
    """How the input was asked for; as the latest of its artifact where that is not known."""
    latest = Reference(given.name, "latest", "latest")
    if used.requested is None:
        return latest
    try:
        asked = parse_reference(used.requested)
    except BadReference:
        return latest
    if asked.name != given.name:
        return latest
    return Reference(asked.name, asked.kind, asked.value)


def _named(version: VersionRecord) -> str:
    return f"{version.ref} (deleted)" if version.state == "deleted" else version.ref
