"""Lineage as a tree, as Graphviz text, as a picture and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from itertools import combinations, pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from begat.drawing import Lineage
from begat.drawing.layout import Box, Layout, Link, lay_out
from begat.model import VersionRecord
from begat.wording import duration_text, printable, shortened, size_text
from lineage_records import World, digits_world

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script>\x1b[31m\u202e\ud800\uffff\"'&\n"


def named(world: World, ref: str) -> VersionRecord:
    return next(version for version in world.versions.values() if version.ref == ref)


def digits_with_alias() -> World:
    world = digits_world()
    model = named(world, "digits-model:v1")
    world.versions[model.uid] = replace(model, aliases=("best",))
    return world


def hostile_world() -> World:
    """Text of every kind that a user may give, at its worst; names themselves are checked when they are stored."""
    world = World()
    data, run = world.version("data"), world.run(HOSTILE, job=HOSTILE)
    world.use(run, data)
    made = world.version("made", by=run, type=HOSTILE)
    world.versions[made.uid] = replace(made, aliases=(HOSTILE,))
    return world


def texts(svg: str) -> str:
    return " | ".join(ElementTree.fromstring(svg).itertext())


# --- the tree ---


def test_the_tree_of_a_version_shows_what_it_was_made_from() -> None:
    world = digits_with_alias()
    tree = Lineage(world.graph(named(world, "digits-predictions:v1"))).tree()
    assert tree.splitlines() == [
        "digits-predictions:v1  predictions, 1 file, 21.3 kB",
        "└─ made by predict (finished, 2 s)",
        "   ├─ used digits-model:v1 [best]",
        "   │  └─ made by train (finished, 2 s)",
        "   │     └─ used digits:v1",
        "   └─ used digits:v1",
    ]


def test_the_tree_in_ascii_has_no_other_character() -> None:
    world = digits_with_alias()
    renamed = world.runs["run-000000"]
    world.runs[renamed.uid] = replace(renamed, name="träin")
    tree = Lineage(world.graph(named(world, "digits-predictions:v1"))).tree(ascii=True)
    assert tree.isascii()
    assert "   |- used digits-model:v1 [best]" in tree.splitlines()
    assert "made by tr\\xe4in" in tree


def test_the_tree_downstream_shows_what_was_made_from_it() -> None:
    world = digits_world()
    world.make("report", named(world, "digits-predictions:v1"))
    tree = Lineage(world.graph(named(world, "digits:v1")), direction="downstream").tree()
    assert tree.splitlines()[1:] == [
        "├─ used by train (finished, 2 s)",
        "│  └─ made digits-model:v1",
        "│     └─ used by predict (finished, 2 s)",
        "│        └─ made digits-predictions:v1",
        "│           └─ used by make-report (finished, 2 s)",
        "│              └─ made report:v1",
        "└─ used by predict (finished, 2 s)",
        "   └─ made digits-predictions:v1 (above)",
    ]


@pytest.mark.parametrize(
    ("direction", "shown", "hidden"),
    [("upstream", "made", "used by"), ("downstream", "used by", "made by")],
)
def test_the_tree_goes_only_in_the_direction_that_was_asked_for(
    direction: Any, shown: str, hidden: str
) -> None:
    world = digits_world()
    tree = Lineage(world.graph(named(world, "digits-model:v1")), direction=direction).tree()
    assert shown in tree
    assert hidden not in tree


def test_the_tree_of_a_run_shows_what_it_used_and_made() -> None:
    world = digits_world()
    run = world.run("watch", status="running", job="watching")
    world.use(run, named(world, "digits-predictions:v1"))
    world.version("alarm", by=run)
    lines = Lineage(world.graph(run)).tree().splitlines()
    assert lines[:2] == ["watch  watching, running", "├─ used digits-predictions:v1"]
    assert lines[-1] == "└─ made alarm:v1"


def test_the_tree_tells_confirmations_and_states_and_other_data() -> None:
    world = digits_world()
    world.confirm(world.run("again", status="lost"), named(world, "digits-model:v1"))
    world.set_state(named(world, "digits:v1"), "bytes-gone")
    world.edges[0] = replace(world.edges[0], mismatch="b3:other")
    tree = Lineage(world.graph(named(world, "digits-model:v1")), direction="upstream").tree()
    assert "used digits:v1 (bytes gone) (other data was read)" in tree
    assert "└─ confirmed by again (lost, 2 s)" in tree


def test_a_run_that_uses_what_it_made_ends_the_tree() -> None:
    world = World()
    run = world.run("train")
    world.use(run, world.version("model", by=run))
    last = world.version("model", by=run)
    tree = Lineage(world.graph(last)).tree()
    assert tree.count("used model:v1") == 1


def test_a_tree_that_is_too_deep_to_read_says_that_it_goes_on() -> None:
    world = World()
    version = world.version("a")
    for _ in range(200):
        version = world.make("a", version)
    lines = Lineage(world.graph(version), direction="upstream").tree().splitlines()
    assert len(lines) < 100
    assert lines[-1].endswith("(goes on)")


def test_a_name_cannot_steer_the_terminal() -> None:
    world = hostile_world()
    tree = Lineage(world.graph(named(world, "made:v1"))).tree()
    assert all(line.isprintable() for line in tree.splitlines())
    assert "\\u001b[31m\\u202e" in tree


# --- Graphviz ---


def test_the_dot_text_leads_from_inputs_to_outputs() -> None:
    world = digits_with_alias()
    again = world.run("again")
    world.confirm(again, named(world, "digits-model:v1"))
    dot = Lineage(world.graph(named(world, "digits-model:v1"))).dot()
    assert (
        'v1 [shape=box, style="rounded,bold", label="digits-model:v1\\nmodel, 21.3 kB\\n[best]"];'
        in dot
    )
    assert all(
        line in dot
        for line in ("v0 -> r0;", "r0 -> v1;", "r2 -> v1 [style=dashed, constraint=false];")
    )


def self_use() -> tuple[World, VersionRecord]:
    """A run that predicts with the model that it made."""
    world = World()
    run = world.run("train")
    world.use(run, world.version("digits"))
    model = world.version("model", by=run)
    world.use(run, model)
    world.version("predictions", by=run)
    return world, model


def use_of_what_came_of_it() -> tuple[World, VersionRecord]:
    """A run that uses what another one made of its own output."""
    world = World()
    run = world.run("train")
    model = world.version("model", by=run)
    world.use(run, world.make("report", model))
    world.version("summary", by=run)
    return world, model


def confirmed_input() -> tuple[World, VersionRecord]:
    """A run that came to what it began with."""
    world = World()
    model = world.make("model", world.version("digits"))
    again = world.run("again")
    world.use(again, model)
    world.confirm(again, model)
    return world, model


@pytest.mark.parametrize("story", [self_use, use_of_what_came_of_it, confirmed_input])
def test_the_dot_text_leads_from_left_to_right_as_the_picture_does(
    story: Callable[[], tuple[World, VersionRecord]],
) -> None:
    world, model = story()
    dot = Lineage(world.graph(model)).dot()
    arrows = re.findall(r"^  (\w+) -> (\w+)( \[.*\])?;$", dot, re.MULTILINE)
    assert len(arrows) == len(world.edges)  # each is drawn
    before: dict[str, set[str]] = {}
    for source, target, facts in arrows:
        if "constraint=false" not in facts:
            before.setdefault(target, set()).add(source)
    order = [*TopologicalSorter(before).static_order()]  # raises CycleError
    names = {uid: f"v{number}" for number, uid in enumerate(world.graph(model).versions)}
    names |= {uid: f"r{number}" for number, uid in enumerate(world.graph(model).runs)}
    [made] = [edge for edge in world.edges if edge.kind == "made" and edge.version_uid == model.uid]
    assert order.index(names[made.run_uid]) < order.index(names[model.uid])


def test_a_use_of_what_a_run_made_itself_leads_back_in_dot() -> None:
    world, model = self_use()
    dot = Lineage(world.graph(model)).dot()
    assert [line.strip() for line in dot.splitlines() if "->" in line] == [
        "v0 -> r0;",
        "r0 -> v1;",
        "v1 -> r0 [constraint=false];",
        "r0 -> v2;",
    ]


def test_text_in_dot_is_quoted_whatever_it_holds() -> None:
    dot = Lineage(hostile_world().graph()).dot()
    without_strings = re.sub(r'"(?:[^"\\\n]|\\.)*"', "", dot)
    assert "alert" in dot
    assert "alert" not in without_strings
    assert '"' not in without_strings


# --- the picture ---


def test_the_picture_names_every_version_and_run() -> None:
    world = digits_with_alias()
    svg = Lineage(world.graph(named(world, "digits-predictions:v1"))).svg()
    shown = texts(svg)
    for text in (
        "digits-predictions",
        "digits-model",
        "best",
        "train",
        "predict",
        "3 versions, 2 runs",
    ):
        assert text in shown
    assert "Lineage of digits-predictions:v1" in shown


def test_the_picture_says_in_words_what_colours_say() -> None:
    world = digits_world()
    world.use(world.run("train", status="failed"), named(world, "digits:v1"))
    world.set_state(named(world, "digits:v1"), "deleted")
    shown = texts(Lineage(world.graph()).svg())
    assert "failed" in shown
    assert "deleted" in shown
    for kind in ("dataset", "model", "predictions"):
        assert f" | {kind} | " in shown


def test_a_confirmation_is_dashed_and_explained() -> None:
    world = digits_world()
    before = Lineage(world.graph()).svg()
    world.confirm(world.run("again"), named(world, "digits-model:v1"))
    after = Lineage(world.graph()).svg()
    assert "stroke-dasharray" not in before
    assert "stroke-dasharray" in after
    assert "confirmed" in texts(after)


def test_a_long_name_is_shortened_and_told_in_full_as_a_tooltip() -> None:
    name = "the-scores-of-every-customer-for-the-quarterly-report"
    world = World()
    version = world.version(name)
    svg = ElementTree.fromstring(Lineage(world.graph(version)).svg())
    assert not any(name in (text.text or "") for text in svg.iter(f"{SVG}text"))
    assert any(name in (title.text or "") for title in svg.iter(f"{SVG}title"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_holds_nothing_active_and_points_nowhere(theme: Any) -> None:
    svg = Lineage(hostile_world().graph()).svg(theme=theme)
    allowed = {"svg", "title", "desc", "g", "rect", "path", "circle", "text"}
    for element in ElementTree.fromstring(svg).iter():
        assert element.tag.removeprefix(SVG) in allowed
        for name, value in element.attrib.items():
            assert "href" not in name
            assert name not in ("style", "id", "class")
            assert not name.startswith("on")
            assert "url(" not in value


def test_the_same_lineage_gives_the_same_picture_whatever_the_order_of_its_edges() -> None:
    world = digits_world()
    first = Lineage(world.graph()).svg()
    world.versions = dict(reversed(world.versions.items()))
    world.runs = dict(reversed(world.runs.items()))
    assert Lineage(world.graph()).svg() == first


def test_above_four_hundred_nodes_the_picture_has_a_box_for_each_artifact_and_says_so() -> None:
    world = World()
    data = world.version("data")
    for _ in range(220):
        world.make("model", data, run="train", type="model")
    shown = texts(Lineage(world.graph(data)).svg())
    assert "v1 to v220" in shown
    assert "221 versions and 220 runs: one box for each artifact, one pill for each job" in shown


def test_a_picture_that_is_still_too_large_shows_what_is_near() -> None:
    world = World()
    data = world.version("data")
    for number in range(300):
        world.make(f"model-{number}", data)
    shown = texts(Lineage(world.graph(named(world, "model-299:v1"))).svg())
    assert "model-299" in shown
    assert "the 400 of 601 nearest to what was asked for" in shown


def test_an_empty_lineage_draws() -> None:
    lineage = Lineage(World().graph())
    assert lineage.tree() == ""
    assert "0 versions, 0 runs" in texts(lineage.svg())


# --- JSON, notebooks ---


def test_json_names_versions_by_reference_and_runs_by_id() -> None:
    world = digits_world()
    predictions = named(world, "digits-predictions:v1")
    value = json.loads(json.dumps(Lineage(world.graph(predictions)).to_dict()))
    assert value["roots"] == ["digits-predictions:v1"]
    assert [version["ref"] for version in value["versions"]] == [
        "digits:v1",
        "digits-model:v1",
        "digits-predictions:v1",
    ]
    assert value["versions"][2]["produced_by"] == "run-000001"
    assert [(run["id"], run["status"]) for run in value["runs"]] == [
        ("run-000000", "finished"),
        ("run-000001", "finished"),
    ]
    asked = [
        (edge["run_id"], edge["kind"], edge["ref"], edge["requested"]) for edge in value["edges"]
    ]
    assert asked[2] == ("run-000001", "used", "digits-model:v1", "digits-model:best")


def test_a_lineage_tells_what_it_is_in_one_line() -> None:
    world = digits_world()
    lineage = Lineage(world.graph(named(world, "digits-model:v1")))
    assert repr(lineage) == "<Lineage of digits-model:v1: 3 versions, 2 runs, 5 edges>"
    assert len(lineage.versions) == 3
    assert [run.name for run in lineage.runs] == ["train", "predict"]
    assert [edge.position for edge in lineage.edges] == [1, 2, 1, 2, 3]


def test_a_notebook_gets_the_picture() -> None:
    lineage = Lineage(digits_world().graph())
    assert lineage._repr_svg_() == lineage.svg()
    assert lineage.svg() in lineage._repr_html_()


# --- labels ---


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (21_300, "21.3 kB"),
        (999_999, "1.0 MB"),
        (10**18, "1000.0 PB"),
    ],
)
def test_sizes_read_in_decimal_units(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.35, "350 ms"),
        (2, "2 s"),
        (119, "119 s"),
        (240, "4 min"),
        (9000, "2.5 h"),
        (180_000, "2.1 d"),
    ],
)
def test_durations_read_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration_text(int(seconds * 1_000_000)) == text


@given(st.text(), st.integers(4, 40))
def test_a_label_is_short_and_printable(text: str, most: int) -> None:
    assert printable(text).isprintable()
    assert len(shortened(text, most)) <= most


# --- the layout ---


graphs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=40)


def laid_out(pairs: list[tuple[int, int, bool]]) -> tuple[list[Box], list[Link], Layout]:
    """Thirteen versions and thirteen runs, linked either way, in circles as well."""
    boxes = [Box(f"v{number}", 200, 50, 0) for number in range(13)]
    boxes += [Box(f"r{number}", 140, 30, 1) for number in range(13)]
    links = [
        Link(f"v{version}", f"r{run}")
        if used
        else Link(f"r{run}", f"v{version}", is_soft=version > 10)
        for version, run, used in dict.fromkeys(pairs)
    ]
    return boxes, links, lay_out(boxes, links)


def sides(box: Box, layout: Layout) -> tuple[float, float, float, float]:
    x, y = layout.centres[box.key]
    return x - box.width / 2, x + box.width / 2, y - box.height / 2, y + box.height / 2


@given(graphs)
def test_no_box_stands_on_another_and_all_are_inside(pairs: list[tuple[int, int, bool]]) -> None:
    boxes, _, layout = laid_out(pairs)
    for box in boxes:
        left, right, top, bottom = sides(box, layout)
        assert -0.01 <= left < right <= layout.width + 0.01
        assert -0.01 <= top < bottom <= layout.height + 0.01
    for one, other in combinations(boxes, 2):
        left, right, top, bottom = sides(one, layout)
        left2, right2, top2, bottom2 = sides(other, layout)
        assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top


@given(graphs)
def test_every_link_is_drawn_once_and_runs_to_the_right_unless_marked(
    pairs: list[tuple[int, int, bool]],
) -> None:
    boxes, links, layout = laid_out(pairs)
    by_key = {box.key: box for box in boxes}
    assert sorted(map(repr, links)) == sorted(repr(route.link) for route in layout.routes)
    for route in layout.routes:
        xs = [x for x, _ in route.points]
        if route.is_return:
            assert xs == sorted(xs, reverse=True)
        else:
            assert xs == sorted(xs)
            assert xs[0] == sides(by_key[route.link.source], layout)[1]
            assert xs[-1] == sides(by_key[route.link.target], layout)[0]


@given(graphs)
def test_no_line_crosses_a_box(pairs: list[tuple[int, int, bool]]) -> None:
    boxes, _, layout = laid_out(pairs)
    for route in layout.routes:
        # Between columns there are no boxes; within one a line is level.
        inner = route.points[1:-1]
        for (x, y), (to_x, _) in zip(inner[::2], inner[1::2], strict=False):
            for box in boxes:
                left, right, top, bottom = sides(box, layout)
                if min(x, to_x) < right and left < max(x, to_x):
                    assert not top < y < bottom


def test_a_run_that_uses_what_it_made_is_drawn_with_a_line_back() -> None:
    boxes = [Box("model", 200, 50, 0), Box("train", 140, 30, 1)]
    layout = lay_out(boxes, [Link("train", "model"), Link("model", "train")])
    assert [route.is_return for route in layout.routes] == [False, True]
    assert layout.centres["train"][0] < layout.centres["model"][0]


def test_a_chain_stands_in_one_straight_row() -> None:
    boxes = [Box(f"{kind}{n}", 100, 40, "vr".index(kind)) for n in range(20) for kind in "vr"]
    links = [Link(one.key, other.key) for one, other in pairwise(boxes)]
    heights = {round(y, 3) for _, y in lay_out(boxes, links).centres.values()}
    assert len(heights) == 1
