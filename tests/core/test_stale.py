"""Which versions were made from inputs that have moved on, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from begat.lineage import Graph
from begat.model import Digest, Edge, VersionRecord
from begat.reference import parse_reference
from begat.stale import Explanation, Stale, explain, find_stale
from lineage_records import World, digits_world


def stale_of(world: World, *, ignore_pinned: bool = False) -> dict[str, Stale]:
    found = find_stale(world.heads(), world.graph(), world.current, ignore_pinned=ignore_pinned)
    return {stale.ref: stale for stale in found}


def why(world: World, version: VersionRecord) -> Explanation:
    return explain(version, world.graph(), world.current)


def made_from(requested: str | None) -> tuple[World, VersionRecord]:
    """A world in which a model was made from digits:v1, asked for so."""
    world = World()
    digits = world.version("digits")
    world.set_alias(digits, "prod")
    return world, world.make("model", (digits, requested), type="model")


# --- behind ---


def test_nothing_is_stale_while_nothing_has_moved() -> None:
    assert stale_of(digits_world()) == {}


@pytest.mark.parametrize(
    "requested", ["digits:latest", "digits", "begat://digits:latest/a.csv", None]
)
def test_an_input_asked_for_as_latest_is_behind_a_newer_version(requested: str | None) -> None:
    world, _ = made_from(requested)
    world.version("digits")
    stale = stale_of(world)["model:v1"]
    assert stale.steps == 1
    assert stale.reason == "model:v1 was made from digits:v1; digits:latest is now digits:v2"
    (behind,) = stale.behind
    assert (behind.input.ref, behind.now.ref) == ("digits:v1", "digits:v2")
    assert behind.requested == (requested or "digits:latest")


def test_an_input_asked_for_by_an_alias_follows_the_alias_and_not_latest() -> None:
    world, _ = made_from("digits:prod")
    second = world.version("digits")
    assert stale_of(world) == {}
    world.set_alias(second, "prod")
    assert stale_of(world)["model:v1"].reason == (
        "model:v1 was made from digits:v1; digits:prod is now digits:v2"
    )


@pytest.mark.parametrize("requested", ["digits:v1", "digits:1.4.0", "digits@b3:9f31c0"])
def test_a_pinned_input_is_compared_with_latest_unless_left_out(requested: str) -> None:
    world, _ = made_from(requested)
    world.version("digits")
    assert stale_of(world)["model:v1"].behind[0].requested == requested
    assert stale_of(world, ignore_pinned=True) == {}


def test_with_pinned_inputs_left_out_what_is_above_them_does_not_count_either() -> None:
    world, model = made_from("digits:latest")
    world.make("predictions", (model, "model:v1"))
    world.version("digits")
    assert stale_of(world).keys() == {"model:v1", "predictions:v1"}
    assert stale_of(world, ignore_pinned=True).keys() == {"model:v1"}


def test_text_that_is_no_reference_to_the_input_is_taken_as_latest() -> None:
    for requested in ("data/train.csv", "other:prod", "digits:01"):
        world, _ = made_from(requested)
        world.version("digits")
        assert "digits:latest is now digits:v2" in stale_of(world)["model:v1"].reason


def test_a_newer_version_of_equal_content_does_not_make_an_input_behind() -> None:
    world, model = made_from("digits:latest")
    world.version("digits", content="digits-1")
    assert stale_of(world) == {}
    assert "digits:latest is digits:v2, equal content" in why(world, model).lines[1]


def test_an_alias_that_is_gone_is_told_and_makes_nothing_stale() -> None:
    world, model = made_from("digits:gone")
    world.version("digits")
    assert stale_of(world) == {}
    assert "digits:gone no longer exists" in why(world, model).lines[1]


def test_a_deleted_input_is_named_as_such() -> None:
    world, _ = made_from("digits:latest")
    world.version("digits")
    world.set_state(world.versions["version-000000"], "deleted")
    assert stale_of(world)["model:v1"].reason == (
        "model:v1 was made from digits:v1 (deleted); digits:latest is now digits:v2"
    )


def test_an_input_of_which_every_version_is_deleted_is_not_behind() -> None:
    world, model = made_from("digits:latest")
    world.set_state(world.versions["version-000000"], "deleted")
    assert stale_of(world) == {}
    assert "digits:v1 (deleted)" in why(world, model).lines[1]


def test_a_version_that_no_run_made_is_never_stale() -> None:
    world = World()
    digits, model = world.version("digits"), world.version("model")
    again = world.run("again")
    world.use(again, digits)
    world.confirm(again, model)
    world.version("digits")
    assert stale_of(world) == {}
    assert "made by no known run" in why(world, model).lines[1]


def test_what_a_run_used_after_it_made_a_version_does_not_count() -> None:
    world = World()
    digits, run = world.version("digits"), world.run("train")
    world.version("model", by=run)
    world.use(run, digits)
    world.version("digits")
    assert stale_of(world) == {}


# --- through steps ---


def test_staleness_passes_down_and_counts_the_steps() -> None:
    world, model = made_from("digits:latest")
    predictions = world.make("predictions", (model, "model:latest"))
    world.make("report", predictions)
    world.version("digits")
    stale = stale_of(world)
    assert {ref: one.steps for ref, one in stale.items()} == {
        "model:v1": 1,
        "predictions:v1": 2,
        "report:v1": 3,
    }
    assert stale["report:v1"].reason == (
        "report:v1 was made from predictions:v1, which was made from model:v1, "
        "which was made from digits:v1; digits:latest is now digits:v2"
    )


def test_the_nearest_input_that_moved_on_gives_the_steps_and_the_reason() -> None:
    world = digits_world()
    world.version("digits")
    stale = stale_of(world)["digits-predictions:v1"]
    assert stale.steps == 1
    assert stale.reason == (
        "digits-predictions:v1 was made from digits:v1; digits:latest is now digits:v2"
    )
    assert [behind.input.ref for behind in stale.behind] == ["digits:v1"]


def test_all_inputs_that_moved_on_are_listed_nearest_first() -> None:
    world = World()
    far, near = world.version("far"), world.version("near")
    model = world.make("model", far)
    world.make("predictions", model, near)
    world.version("far")
    world.version("near")
    behind = stale_of(world)["predictions:v1"].behind
    assert [one.input.ref for one in behind] == ["near:v1", "far:v1"]


def test_the_reason_of_a_long_chain_leaves_its_middle_out() -> None:
    world = World()
    version = world.version("a0")
    for number in range(1, 10):
        version = world.make(f"a{number}", version)
    world.version("a0")
    assert stale_of(world)["a9:v1"].reason == (
        "a9:v1 was made from a8:v1, which was made from a7:v1 (through 5 more), "
        "which was made from a1:v1, which was made from a0:v1; a0:latest is now a0:v2"
    )


def test_after_everything_is_made_again_nothing_is_stale() -> None:
    world = digits_world()
    digits = world.version("digits")
    model = world.make("digits-model", digits, type="model")
    assert stale_of(world).keys() == {"digits-model:v1", "digits-predictions:v1"}
    world.set_alias(model, "best")
    world.make("digits-predictions", (model, "digits-model:best"), digits)
    assert stale_of(world) == {}


# --- early cutoff ---


def features_world() -> tuple[World, VersionRecord]:
    """raw -> features -> model; raw has got a second version."""
    world = World()
    features = world.make("features", world.version("raw"), run="extract")
    world.make("model", features, type="model")
    return world, world.version("raw")


def test_a_confirmation_from_newer_inputs_makes_a_version_fresh_and_all_below_it() -> None:
    world, raw = features_world()
    assert stale_of(world).keys() == {"features:v1", "model:v1"}
    again = world.run("extract")
    world.use(again, raw)
    world.confirm(again, world.versions["version-000001"])
    assert stale_of(world) == {}


def test_the_reason_tells_the_newest_of_several_confirmations() -> None:
    world, raw = features_world()
    again = world.run("extract")
    world.use(again, raw)
    world.confirm(again, world.versions["version-000001"])
    world.version("raw")
    assert stale_of(world)["features:v1"].reason == (
        "features:v1 was confirmed from raw:v2; raw:latest is now raw:v3"
    )


def test_a_confirmation_from_the_same_old_inputs_changes_nothing() -> None:
    world, _ = features_world()
    again = world.run("extract")
    world.use(again, (world.versions["version-000000"], "raw:v1"))
    world.confirm(again, world.versions["version-000001"])
    assert stale_of(world).keys() == {"features:v1", "model:v1"}


def test_a_confirmation_without_inputs_proves_nothing() -> None:
    world, _ = features_world()
    world.confirm(world.run("extract"), world.versions["version-000001"])
    assert stale_of(world).keys() == {"features:v1", "model:v1"}


def test_a_newer_version_of_equal_content_from_newer_inputs_keeps_what_is_below_fresh() -> None:
    world, raw = features_world()
    world.make("features", raw, content="features-1")
    assert stale_of(world) == {}
    (model,) = (one for one in world.versions.values() if one.name == "model")
    first = world.versions["version-000001"]
    assert why(world, model).is_stale is False
    assert why(world, first).lines[:2] == (
        "features:v1 is up to date",
        "features:v2 has the same content, from current inputs",
    )


def test_equal_content_under_another_name_proves_nothing() -> None:
    world, raw = features_world()
    world.make("others", raw, content="features-1")
    assert stale_of(world).keys() == {"features:v1", "model:v1"}


def test_a_circle_of_confirmations_makes_nothing_fresh() -> None:
    world = World()
    model = world.make("model", world.version("digits"))
    predictions = world.make("predictions", model)
    again = world.run("distil")
    world.use(again, predictions)
    world.confirm(again, model)
    world.version("digits")
    assert {ref: one.steps for ref, one in stale_of(world).items()} == {
        "model:v1": 1,
        "predictions:v1": 2,
    }


# --- work that continues itself ---


def test_an_extended_dataset_is_not_stale_because_of_the_version_it_extends() -> None:
    world = World()
    first = world.version("digits")
    world.make("digits", first)
    assert stale_of(world) == {}


def test_a_model_trained_further_on_new_data_is_not_stale_because_its_start_was() -> None:
    world = World()
    first = world.make("model", world.version("digits"))
    digits = world.version("digits")
    last = world.make("model", first, digits)
    assert stale_of(world) == {}
    assert "an earlier version of itself, not compared" in why(world, last).lines[1]
    world.version("digits")
    assert stale_of(world).keys() == {"model:v2"}


def test_what_a_run_made_from_its_own_newer_output_is_not_stale() -> None:
    world = World()
    checkpoint, run = world.version("checkpoint"), world.run("train")
    world.use(run, checkpoint)
    world.version("checkpoint", by=run)
    world.version("curves", by=run)
    assert stale_of(world) == {}


def test_what_a_run_made_before_it_renewed_the_input_is_stale() -> None:
    world = World()
    digits, notebook = world.version("digits"), world.run("notebook")
    world.use(notebook, digits)
    world.version("model", by=notebook)
    world.version("digits", by=notebook)
    assert stale_of(world).keys() == {"model:v1"}


# --- why ---


def test_why_names_every_input_of_every_stale_version_on_the_way() -> None:
    world = World()
    model = world.make("model", world.version("digits"), run="train")
    predictions = world.make("predictions", (model, "model:best"), run="predict")
    world.set_alias(model, "best")
    world.version("digits")
    explanation = why(world, predictions)
    assert explanation.is_stale
    assert explanation.stale == stale_of(world)["predictions:v1"]
    assert explanation.lines == (
        "predictions:v1 is stale: predictions:v1 was made from model:v1, which was made from digits:v1; "
        "digits:latest is now digits:v2",
        "predictions:v1 was made by 'predict' from model:v1: model:best is still this, but stale",
        "model:v1 was made by 'train' from digits:v1: digits:latest is now digits:v2",
    )


def test_why_of_a_version_outside_the_graph_says_that_no_run_is_known() -> None:
    world, model = made_from("digits:latest")
    explanation = explain(model, Graph({}, {}, ()), world.current)
    assert explanation.lines == (
        "model:v1 is up to date",
        "model:v1 was made by no known run, so it is never stale",
    )


# --- the whole against a plain reading of the rules ---


acts = st.lists(
    st.tuples(
        st.sampled_from(["make", "make", "make", "confirm", "log", "alias", "delete", "further"]),
        st.integers(0, 99),
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4)), max_size=3),
    ),
    max_size=25,
)


def world_of(steps: list[tuple[str, int, list[tuple[int, int]]]]) -> World:
    world = World()
    world.version("a0", content="0")
    for act, choice, inputs in steps:
        versions = list(world.versions.values())
        one = versions[choice % len(versions)]
        if act == "log":
            world.version(f"a{choice % 5}", content=str(choice % 3))
        elif act == "alias":
            world.set_alias(one, "best")
        elif act == "delete":
            world.set_state(one, "deleted")
        else:
            further = act == "further" and world.runs
            run = world.runs[f"run-{choice % len(world.runs):06d}"] if further else world.run(act)
            for which, how in inputs:
                given = versions[which % len(versions)]
                asked = ("latest", "best", f"v{given.number}", "nothing")
                world.use(run, (given, f"{given.name}:{asked[how]}" if how < 4 else None))
            if act == "confirm":
                world.confirm(run, one)
            else:
                world.version(f"a{choice % 5}", content=str(choice % 3), by=run)
    return world


def plain_inputs(world: World, edge: Edge, *, ignore_pinned: bool) -> list[tuple[str, bool]]:
    """(uid, is it behind) of each input that is compared, as the rules say it."""
    made, inputs = world.versions[edge.version_uid], list[tuple[str, bool]]()
    for used in world.edges:
        if (used.kind, used.run_uid) != ("used", edge.run_uid) or used.position > edge.position:
            continue
        given = world.versions[used.version_uid]
        asked = parse_reference(used.requested or given.name)
        if given.name == made.name or (asked.is_pinned and ignore_pinned):
            continue
        now = world.current(f"{given.name}:latest" if asked.is_pinned else str(asked))
        moved = now is not None and now.digest != given.digest
        own = now is not None and now.run_uid == edge.run_uid and now.created_at < edge.at
        inputs.append((given.uid, moved and not own))
    return inputs


def plain_stale(world: World, *, ignore_pinned: bool) -> dict[str, int]:
    """uid -> steps, by going round until nothing changes."""
    productions = [
        (edge, plain_inputs(world, edge, ignore_pinned=ignore_pinned))
        for edge in world.edges
        if edge.kind != "used"
    ]
    with_inputs = {
        edge.version_uid for edge, inputs in productions if edge.kind == "made" and inputs
    }
    fresh, before = world.versions.keys() - with_inputs, None
    while fresh != before:
        before = set(fresh)
        for edge, inputs in productions:
            if inputs and all(uid in fresh and not behind for uid, behind in inputs):
                made = world.versions[edge.version_uid]
                fresh |= {
                    uid
                    for uid, other in world.versions.items()
                    if (other.name, other.digest) == (made.name, made.digest)
                }
    steps: dict[str, int] = {}
    for distance in range(1, len(world.versions) + 2):
        nearest = {uid for uid, steps_away in steps.items() if steps_away == distance - 1}
        for edge, inputs in productions:
            near = any(
                behind if distance == 1 else uid in nearest and not behind for uid, behind in inputs
            )
            if near and edge.version_uid not in fresh:
                steps.setdefault(edge.version_uid, distance)
    return steps


@given(acts, st.booleans())
def test_what_is_stale_and_how_far_is_what_the_rules_say(
    steps: list[tuple[str, int, list[tuple[int, int]]]], ignore_pinned: bool
) -> None:
    world = world_of(steps)
    graph, everything = world.graph(), list(world.versions.values())
    found = find_stale(everything, graph, world.current, ignore_pinned=ignore_pinned)
    assert {one.version.uid: one.steps for one in found} == plain_stale(
        world, ignore_pinned=ignore_pinned
    )
    for one in found:
        assert one.behind
        assert one.reason.endswith(f"is now {one.behind[0].now.ref}") or len(one.behind) > 1
        assert explain(one.version, graph, world.current, ignore_pinned=ignore_pinned).stale == one


def test_a_long_chain_is_judged() -> None:
    world, number = World(), 20_000
    version, run = world.version("a"), world.run("train")

    def link(index: int) -> VersionRecord:
        return replace(version, uid=f"v{index}", name=f"a{index}", artifact_uid=f"a{index}")

    versions = {f"v{index}": link(index) for index in range(number + 1)}
    runs = {f"r{index}": run for index in range(number)}
    edges = [Edge(f"r{index}", f"v{index}", "used", 1, 0) for index in range(number)]
    edges += [Edge(f"r{index}", f"v{index + 1}", "made", 2, 0) for index in range(number)]
    newer = replace(versions["v0"], uid="new", number=2, digest=Digest("b3:new"))
    (stale,) = find_stale(
        [versions[f"v{number}"]],
        Graph(versions, runs, tuple(edges)),
        lambda text: newer if text == "a0:latest" else None,
    )
    assert stale.steps == number
    assert len(stale.behind) == 1
