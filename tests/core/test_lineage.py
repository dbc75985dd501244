"""Walks over versions and runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from begat.lineage import Graph
from begat.model import Edge, VersionRecord
from lineage_records import World, digits_world


def refs(versions: list[VersionRecord]) -> list[str]:
    return [version.ref for version in versions]


def named(world: World, ref: str) -> str:
    return next(version.uid for version in world.versions.values() if version.ref == ref)


def test_the_inputs_of_a_version_are_what_its_run_had_used() -> None:
    world = digits_world()
    found = world.graph().inputs_of(named(world, "digits-predictions:v1"))
    assert [(edge.requested, version.ref) for edge, version in found] == [
        ("digits-model:best", "digits-model:v1"),
        ("digits:latest", "digits:v1"),
    ]


def test_what_a_run_used_after_it_made_a_version_is_no_input_of_it() -> None:
    world = World()
    early, late, run = world.version("early"), world.version("late"), world.run("train")
    world.use(run, early)
    model = world.version("model", by=run)
    world.use(run, late)
    graph = world.graph()
    assert refs([version for _, version in graph.inputs_of(model.uid)]) == ["early:v1"]
    assert refs(graph.descendants(late.uid)) == []


def test_a_run_that_uses_what_it_made_leaves_the_ancestry_without_a_cycle() -> None:
    world = World()
    run = world.run("train")
    first = world.version("model", by=run)
    world.use(run, first)
    second = world.version("model", by=run)
    graph = world.graph()
    assert refs(graph.ancestors(second.uid)) == ["model:v1"]
    assert refs(graph.ancestors(first.uid)) == []


def test_the_maker_of_a_version_is_its_run_and_none_for_one_without() -> None:
    world = digits_world()
    maker = world.graph().maker_of(named(world, "digits-model:v1"))
    assert maker is not None
    assert maker.name == "train"
    assert world.graph().maker_of(named(world, "digits:v1")) is None


def test_consumers_come_in_the_order_in_which_their_runs_began() -> None:
    world = digits_world()
    found = world.graph().consumers_of(named(world, "digits:v1"))
    assert [run.name for _, run in found] == ["train", "predict"]


def test_descendants_come_nearest_first() -> None:
    world = digits_world()
    predictions = world.versions[named(world, "digits-predictions:v1")]
    world.make("report", predictions)
    assert refs(world.graph().descendants(named(world, "digits:v1"))) == [
        "digits-model:v1",
        "digits-predictions:v1",
        "report:v1",
    ]


def test_a_run_reaches_what_it_used_and_what_it_made() -> None:
    world = digits_world()
    graph = world.graph()
    train = next(run for run in world.runs.values() if run.name == "train")
    assert refs(graph.ancestors(train.uid)) == ["digits:v1"]
    assert refs(graph.descendants(train.uid)) == ["digits-model:v1", "digits-predictions:v1"]
    assert refs([version for _, version in graph.outputs_of(train.uid)]) == ["digits-model:v1"]


def test_the_shortest_path_alternates_versions_and_runs() -> None:
    world = digits_world()
    graph = world.graph()
    start, end = named(world, "digits:v1"), named(world, "digits-predictions:v1")
    path = graph.shortest_path(start, end)
    predict = next(run for run in world.runs.values() if run.name == "predict")
    assert path == (start, predict.uid, end)
    assert graph.shortest_path(end, start) == ()
    assert graph.shortest_path(end, end) == (end,)


def test_a_confirmation_is_no_way_from_input_to_output() -> None:
    world = World()
    data, model = world.version("data"), world.version("model")
    run = world.run("again")
    world.use(run, data)
    world.confirm(run, model)
    assert refs(world.graph().descendants(data.uid)) == []
    assert world.graph().shortest_path(data.uid, model.uid) == ()


@pytest.mark.parametrize("missing", ["version", "run"])
def test_an_edge_whose_end_is_outside_the_piece_is_passed_over(missing: str) -> None:
    world = digits_world()
    versions, runs = dict(world.versions), dict(world.runs)
    if missing == "version":
        del versions[named(world, "digits:v1")]
    else:
        runs.clear()
    graph = Graph(versions, runs, tuple(world.edges))
    model = named(world, "digits-model:v1")
    assert graph.inputs_of(model) == []
    assert graph.ancestors(model) == []


def test_a_chain_of_a_hundred_thousand_versions_is_walked() -> None:
    seed = digits_world()
    version, run = next(iter(seed.versions.values())), next(iter(seed.runs.values()))
    number = 100_000
    versions = {f"v{i}": version for i in range(number + 1)}
    runs = {f"r{i}": run for i in range(number)}
    edges = [Edge(f"r{i}", f"v{i}", "used", 1, 0) for i in range(number)]
    edges += [Edge(f"r{i}", f"v{i + 1}", "made", 2, 0) for i in range(number)]
    graph = Graph(versions, runs, tuple(edges))
    assert len(graph.ancestors(f"v{number}")) == number
    assert len(graph.shortest_path("v0", f"v{number}")) == 2 * number + 1


acts = st.lists(
    st.tuples(st.sampled_from(["use", "make"]), st.integers(0, 3), st.integers(0, 30)), max_size=40
)


def world_of(steps: list[tuple[str, int, int]]) -> World:
    """Four runs that use and make in any order, their own versions included."""
    world = World()
    world.version("seed")
    runs = [world.run(f"run-{number}") for number in range(4)]
    for act, run, choice in steps:
        if act == "make":
            world.version(f"a{choice % 3}", by=runs[run])
        else:
            world.use(runs[run], list(world.versions.values())[choice % len(world.versions)])
    return world


@given(acts)
def test_no_version_is_its_own_ancestor(steps: list[tuple[str, int, int]]) -> None:
    graph = world_of(steps).graph()
    for uid in graph.versions:
        assert graph.versions[uid] not in graph.ancestors(uid)


@given(acts)
def test_ancestors_are_the_inputs_and_their_ancestors(steps: list[tuple[str, int, int]]) -> None:
    graph = world_of(steps).graph()
    above: dict[str, set[str]] = {}
    for uid in graph.versions:  # in the order in which they were made
        inputs = [version.uid for _, version in graph.inputs_of(uid)]
        above[uid] = set(inputs).union(*(above[one] for one in inputs))
        assert {version.uid for version in graph.ancestors(uid)} == above[uid]
    for uid in graph.versions:
        below = {other for other in graph.versions if uid in above[other]}
        assert {version.uid for version in graph.descendants(uid)} == below


@given(acts)
def test_a_shortest_path_exists_to_every_descendant_and_each_step_is_an_edge(
    steps: list[tuple[str, int, int]],
) -> None:
    graph = world_of(steps).graph()
    for uid in graph.versions:
        for version in graph.descendants(uid):
            path = graph.shortest_path(uid, version.uid)
            assert (path[0], path[-1]) == (uid, version.uid)
            for source, run, made in zip(path[::2], path[1::2], path[2::2], strict=False):
                assert graph.maker_of(made) is graph.runs[run]
                assert graph.versions[source] in [given for _, given in graph.inputs_of(made)]
