"""Runs, what they use, and the lineage that follows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from begat.catalog import Catalog
from begat.errors import AmbiguousReference, RunFinished, RunNotFound, VersionDeleted
from begat.identity import new_uid
from begat.model import Edge
from catalog_facts import new_run, new_version, statements_read, unstaged


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


class Story:
    """Uses and makes versions, by short names: `story.step("train", uses=["data"], makes=["model"])`."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.versions: dict[str, str] = {}
        self.runs: dict[str, str] = {}

    def run(self, name: str) -> str:
        if name not in self.runs:
            self.runs[name] = self.catalog.runs.start(new_run(name=name)).uid
        return self.runs[name]

    def use(self, run: str, version: str) -> Edge:
        return self.catalog.runs.use(self.run(run), self.versions[version], requested=version)

    def make(self, run: str, version: str) -> None:
        new = new_version(version, version, run_uid=self.run(run))
        self.versions[version] = self.catalog.commits.commit(new).version.uid

    def step(self, run: str, *, uses: list[str], makes: list[str]) -> None:
        for version in uses:
            self.use(run, version)
        for version in makes:
            self.make(run, version)

    def lineage(self, *names: str, runs: tuple[str, ...] = (), **options) -> tuple[set, set, set]:
        versions, met, edges = self.catalog.runs.lineage(
            version_uids=[self.versions[name] for name in names],
            run_uids=[self.runs[name] for name in runs],
            **options,
        )
        return (
            {version.name for version in versions.values()},
            {run.name for run in met.values()},
            {(met[e.run_uid].name, e.kind, versions[e.version_uid].name) for e in edges},
        )


@pytest.fixture
def story(catalog: Catalog) -> Story:
    """raw -> prepare -> data -> train -> model -> predict -> predictions; data -> look -> plot."""
    story = Story(catalog)
    story.step("load", uses=[], makes=["raw"])
    story.step("prepare", uses=["raw"], makes=["data"])
    story.step("train", uses=["data"], makes=["model"])
    story.step("predict", uses=["model", "data"], makes=["predictions"])
    story.step("look", uses=["data"], makes=["plot"])
    return story


# --- the life of a run ---


def test_a_run_is_kept_as_it_was_started(catalog: Catalog):
    new = new_run(
        job="job",
        parent_uid="parent",
        params={"lr": 0.1},
        metrics={"acc": 1},
        tags=("b", "a"),
        git={"commit": "abc"},
        command={"argv": ["a"]},
        environment={"python": "3.11"},
        host="h",
        pid=7,
        process_started="8",
        boot_id="9",
    )
    before = catalog.now()
    run = catalog.runs.start(new)
    assert run == catalog.runs.get(new.uid)
    for name in ("uid", "name", "job", "parent_uid", "params", "metrics", "git", "command"):
        assert getattr(run, name) == getattr(new, name)
    for name in ("environment", "host", "pid", "process_started", "boot_id", "user"):
        assert getattr(run, name) == getattr(new, name)
    assert run.tags == ("a", "b")
    assert (run.status, run.ended_at, run.error) == ("running", None, None)
    assert before <= run.started_at == run.heartbeat_at <= catalog.now()


def test_starting_a_run_twice_is_starting_it_once(catalog: Catalog):
    new = new_run()
    first = catalog.runs.start(new)
    assert catalog.runs.start(new) == first
    assert len(catalog.runs.list()) == 1


def test_params_and_metrics_are_added_to(catalog: Catalog):
    run = catalog.runs.start(new_run(params={"lr": 0.1, "seed": 1}))
    catalog.runs.update(run.uid, params={"lr": 0.2}, metrics={"acc": 0.9})
    updated = catalog.runs.update(run.uid, metrics={"loss": 0.1}, name="renamed")
    assert updated.params == {"lr": 0.2, "seed": 1}
    assert updated.metrics == {"acc": 0.9, "loss": 0.1}
    assert updated.name == "renamed"


def test_a_run_ends_once(catalog: Catalog):
    run = catalog.runs.start(new_run())
    failed = catalog.runs.finish(run.uid, "failed", error={"type": "ValueError"})
    assert (failed.status, failed.error) == ("failed", {"type": "ValueError"})
    assert failed.ended_at is not None
    assert catalog.runs.finish(run.uid, "finished") == failed


def test_a_lost_run_ended_when_it_was_last_heard_of_and_may_come_back(catalog: Catalog):
    run = catalog.runs.start(new_run())
    catalog.runs.heartbeat(run.uid)
    heard = catalog.runs.get(run.uid).heartbeat_at
    lost = catalog.runs.mark_lost(run.uid)
    assert (lost.status, lost.ended_at) == ("lost", heard)
    assert heard > run.started_at
    assert catalog.runs.finish(run.uid, "finished").status == "finished"
    assert catalog.runs.mark_lost(run.uid).status == "finished"


def test_a_run_is_found_by_the_beginning_of_its_id(catalog: Catalog):
    runs = [
        catalog.runs.start(new_run(uid=f"0190000{i}-0000-7000-8000-000000000000")) for i in "12"
    ]
    assert catalog.runs.find("01900001") == runs[0]
    with pytest.raises(AmbiguousReference, match=f"fits several.*{runs[1].uid}.*{runs[0].uid}"):
        catalog.runs.find("0190")
    for unknown in ("02", "0190000100", "%", ""):
        with pytest.raises(RunNotFound, match="no run"):
            catalog.runs.find(unknown)


def test_a_run_is_found_by_its_name_and_only_when_it_is_looked_for(catalog: Catalog):
    run = catalog.runs.start(new_run(uid="01900001-0000-7000-8000-000000000000", name="night"))
    assert catalog.runs.find("night") == run
    assert catalog.runs.get(run.uid) == run
    with pytest.raises(RunNotFound):  # the only run there is, and still not asked for
        catalog.runs.find("")
    for text in ("night", "01900001"):
        with pytest.raises(RunNotFound, match="no run has the id"):
            catalog.runs.get(text)


def test_runs_are_listed_newest_first_and_chosen(catalog: Catalog):
    first = catalog.runs.start(new_run(job="a", tags=("x",)))
    second = catalog.runs.start(new_run(job="b"))
    third = catalog.runs.start(new_run(job="a"))
    catalog.runs.finish(second.uid, "finished")
    uids = lambda **chosen: [run.uid for run in catalog.runs.list(**chosen)]  # noqa: E731
    assert uids() == [third.uid, second.uid, first.uid]
    assert uids(limit=1) == [third.uid]
    assert uids(job="a") == [third.uid, first.uid]
    assert uids(status="finished") == [second.uid]
    assert uids(tag="x") == [first.uid]


# --- using ---


def test_a_use_is_recorded_with_what_was_asked_for(catalog: Catalog, story: Story):
    edge = story.use("new", "data")
    assert (edge.kind, edge.position, edge.requested) == ("used", 1, "data")
    assert (edge.is_declared, edge.is_detected) == (True, False)
    assert catalog.runs.edges_of_run(story.runs["new"]) == [edge]


def test_using_again_adds_to_the_same_edge(catalog: Catalog, story: Story):
    run, version = story.run("new"), story.versions["data"]
    first = catalog.runs.use(run, version, requested="data", declared=True)
    story.use("new", "raw")
    second = catalog.runs.use(
        run,
        version,
        requested="begat://data:latest/a.csv",
        declared=False,
        detected=True,
        role="x",
        mismatch="other",
    )
    assert (second.position, second.at, second.requested) == (1, first.at, "data")
    assert (second.is_declared, second.is_detected) == (True, True)
    assert (second.role, second.mismatch) == ("x", "other")
    assert len(catalog.runs.edges_of_run(run)) == 2


def test_another_question_with_the_same_answer_is_an_edge_of_its_own(
    catalog: Catalog, story: Story
):
    run, version = story.run("new"), story.versions["data"]
    for text in ("data:best", "data:v1", "data:best"):
        catalog.runs.use(run, version, requested=text)
    found = catalog.runs.edges_of_run(run)
    assert [(edge.position, edge.requested) for edge in found] == [(1, "data:best"), (2, "data:v1")]
    _, _, met = catalog.runs.lineage(run_uids=[run], direction="upstream", depth=1)
    assert met == found


def test_what_was_found_without_being_asked_for_stands_at_the_first_edge(
    catalog: Catalog, story: Story
):
    run, version = story.run("new"), story.versions["data"]
    catalog.runs.use(run, version, requested="data:best")
    catalog.runs.use(run, version, requested="data:v1")
    catalog.runs.use(run, version, requested=None, declared=False, detected=True)
    found = catalog.runs.edges_of_run(run)
    assert [(edge.requested, edge.is_declared, edge.is_detected) for edge in found] == [
        ("data:best", True, True),
        ("data:v1", True, False),
    ]


def test_what_was_found_first_and_asked_for_later_is_one_edge(catalog: Catalog, story: Story):
    run, version = story.run("new"), story.versions["data"]
    found = catalog.runs.use(run, version, requested=None, declared=False, detected=True)
    assert (found.requested, found.is_declared) == (None, False)
    asked = catalog.runs.use(run, version, requested="data:v1")
    assert (asked.requested, asked.is_declared, asked.is_detected) == ("data:v1", True, True)
    assert catalog.runs.edges_of_run(run) == [asked]


def test_a_run_that_is_over_uses_nothing_more(catalog: Catalog, story: Story):
    catalog.runs.finish(story.runs["train"], "finished")
    with pytest.raises(RunFinished):
        story.use("train", "raw")


def test_a_deleted_version_is_not_used(catalog: Catalog, story: Story):
    catalog.labels.delete(story.versions["plot"], by="ann")
    with pytest.raises(VersionDeleted):
        story.use("new", "plot")


def test_a_reference_is_pinned_for_its_run_until_the_run_makes_a_version(
    catalog: Catalog, story: Story
):
    run, version = story.run("new"), catalog.versions.get(story.versions["data"])
    catalog.runs.use(run, version.uid, requested="data:latest", pin="data:latest")
    assert catalog.runs.pinned(run, "data:latest") == version.uid
    assert catalog.runs.pinned(run, "data") is None
    assert catalog.runs.pinned(story.run("train"), "data:latest") is None
    catalog.commits.commit(new_version("raw", "newer", run_uid=run))
    catalog.commits.commit(new_version("data", "newer", run_uid=story.run("train")))
    assert catalog.runs.pinned(run, "data:latest") == version.uid
    catalog.commits.commit(new_version("data", "newer", run_uid=run))  # which confirms it
    assert catalog.runs.pinned(run, "data:latest") == version.uid
    catalog.commits.commit(new_version("data", "newest", run_uid=run))
    assert catalog.runs.pinned(run, "data:latest") is None


# --- lineage ---


def test_upstream_of_a_version_is_all_it_came_from(story: Story):
    versions, runs, edges = story.lineage("model", direction="upstream")
    assert versions == {"model", "data", "raw"}
    assert runs == {"train", "prepare", "load"}
    assert edges == {
        ("train", "made", "model"),
        ("train", "used", "data"),
        ("prepare", "made", "data"),
        ("prepare", "used", "raw"),
        ("load", "made", "raw"),
    }


def test_downstream_of_a_version_is_all_that_came_from_it(story: Story):
    versions, runs, edges = story.lineage("data", direction="downstream")
    assert versions == {"data", "model", "predictions", "plot"}
    assert runs == {"train", "predict", "look"}
    assert ("predict", "used", "model") in edges
    assert ("prepare", "made", "data") not in edges


def test_both_directions_leave_out_what_only_shares_an_input(story: Story):
    versions, _, _ = story.lineage("model")
    assert versions == {"raw", "data", "model", "predictions"}


@pytest.mark.parametrize(
    ("depth", "versions", "runs"),
    [
        (0, {"predictions"}, set()),
        (1, {"predictions", "model", "data"}, {"predict"}),
        (2, {"predictions", "model", "data", "raw"}, {"predict", "train", "prepare"}),
        (9, {"predictions", "model", "data", "raw"}, {"predict", "train", "prepare", "load"}),
    ],
)
def test_depth_counts_versions_upstream(story: Story, depth: int, versions: set, runs: set):
    assert story.lineage("predictions", direction="upstream", depth=depth)[:2] == (versions, runs)


def test_depth_counts_versions_downstream(story: Story):
    versions, runs, _ = story.lineage("raw", direction="downstream", depth=1)
    assert (versions, runs) == ({"raw", "data"}, {"prepare"})


def test_a_walk_of_great_depth_is_the_walk_without_end(story: Story):
    for direction in ("upstream", "downstream", "both"):
        for name in story.versions:
            everything = story.lineage(name, direction=direction)
            assert story.lineage(name, direction=direction, depth=50) == everything


def test_lineage_of_a_run_begins_with_what_it_used_and_made(story: Story):
    versions, runs, edges = story.lineage(runs=("train",), direction="upstream", depth=1)
    assert (versions, runs) == ({"data"}, {"train"})
    assert edges == {("train", "used", "data")}
    versions, _, edges = story.lineage(runs=("train",), direction="downstream")
    assert versions == {"model", "predictions"}
    assert ("train", "made", "model") in edges
    versions, _, _ = story.lineage(runs=("train",), direction="upstream", depth=2)
    assert versions == {"data", "raw"}


def test_what_a_run_used_after_it_made_a_version_is_no_input_of_it(story: Story):
    story.step("late", uses=["raw"], makes=["x"])
    story.step("late", uses=["plot"], makes=["y"])
    assert story.lineage("x", direction="upstream")[0] == {"x", "raw"}
    assert story.lineage("y", direction="upstream")[0] >= {"y", "raw", "plot", "data"}
    assert story.lineage("plot", direction="downstream")[0] == {"plot", "y"}


def test_a_run_may_use_what_it_made_itself(story: Story):
    story.step("loop", uses=["raw"], makes=["first"])
    story.step("loop", uses=["first"], makes=["second"])
    assert story.lineage("first", direction="upstream")[0] == {"first", "raw"}
    assert story.lineage("second", direction="upstream")[0] == {"second", "first", "raw"}
    assert story.lineage("first", direction="downstream")[0] == {"first", "second"}


def confirm(story: Story, run: str, version: str) -> None:
    new = new_version(version, version, run_uid=story.run(run))
    assert not story.catalog.commits.commit(unstaged(new)).is_new


def test_who_confirmed_a_version_is_shown_but_not_walked_along(story: Story):
    story.use("retrain", "plot")
    confirm(story, "retrain", "model")
    versions, runs, edges = story.lineage("model", direction="upstream")
    assert ("retrain", "confirmed", "model") in edges
    assert "retrain" in runs
    assert "plot" not in versions
    versions, _, edges = story.lineage("model", direction="upstream", through_confirmed=True)
    assert "plot" in versions
    assert ("retrain", "used", "plot") in edges


def test_a_run_that_confirms_what_it_used_ends_the_walk_all_the_same(story: Story):
    story.use("retrain", "model")
    confirm(story, "retrain", "model")
    versions, _, _ = story.lineage("model", direction="both", through_confirmed=True)
    assert versions == {"raw", "data", "model", "predictions"}


def test_lineage_of_nothing_is_empty(story: Story):
    assert story.lineage() == (set(), set(), set())


def test_a_wide_lineage_is_fetched_in_few_statements(catalog: Catalog):
    story = Story(catalog)
    story.step("load", uses=[], makes=["raw"])
    for i in range(120):
        story.step(f"run {i}", uses=["raw"], makes=[f"out {i}"])
    seen = statements_read(catalog)
    versions, runs, edges = story.lineage("raw", direction="downstream")
    assert (len(versions), len(runs), len(edges)) == (121, 120, 240)
    assert len(seen) <= 10


def test_a_chain_longer_than_any_stack_is_walked(catalog: Catalog):
    from begat.catalog.statements import insert_many
    from begat.tables import edges

    count = 3000
    rows = []
    for i in range(count):
        if i:
            rows.append((f"r{i}", f"v{i - 1}", "used", 1, i, 1, 0, None, "", None))
        rows.append((f"r{i}", f"v{i}", "made", 2, i, 1, 0, None, "", None))
    with catalog._engine.write("planting a chain") as connection:
        insert_many(connection, edges, rows)
    assert len(catalog.runs.reached([f"v{count - 1}"], "upstream")) == count
    assert len(catalog.runs.reached(["v0"], "downstream")) == count


# Steps: (run, None) makes a version, (run, k) uses the k-th version that there is, whoever made it.
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.none() | st.integers(0, 30)), min_size=1, max_size=25
)


@settings(max_examples=25)
@given(steps=STEPS)
def test_ancestry_has_no_cycle_in_whatever_order_runs_use_and_make(
    steps: list[tuple[int, int | None]], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("dag")
    with Catalog.create(folder / f"{new_uid()}.sqlite", "store") as catalog:
        story = Story(catalog)
        made: list[str] = []
        inputs: dict[str, set[str]] = {}
        used: dict[int, set[str]] = {}
        for run, choice in steps:
            if choice is None or not made:
                name = f"w{len(made)}"
                story.make(str(run), name)
                made.append(name)
                inputs[name] = set(used.get(run, set()))
            else:
                name = made[choice % len(made)]
                story.use(str(run), name)
                used.setdefault(run, set()).add(name)
        for name in made:
            expected, waiting = {name}, [name]
            while waiting:
                for parent in inputs[waiting.pop()] - expected:
                    expected.add(parent)
                    waiting.append(parent)
            versions, _, _ = story.lineage(name, direction="upstream")
            assert versions == expected
            ancestors = catalog.runs.reached([story.versions[name]], "upstream")
            assert {v for v, uid in story.versions.items() if uid in ancestors} == expected
            # No cycle: nothing that a version came from came from that version.
            for other in expected - {name}:
                assert name not in story.lineage(other, direction="upstream")[0]
