"""What each command of `begat` does, says and answers."""

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from begat import open_store, start_run
from begat.cli import app, part_of_app
from begat.wording import size_text
from command_line import COMMAND, begat, done, environment

COMMANDS = {
    *("init", "log", "ls", "show", "history", "get", "diff", "lineage", "run", "runs", "alias"),
    *("tag", "rm", "verify", "gc", "stale", "why", "doctor", "cache", "sync", "backup", "rebuild"),
}


def all_commands() -> dict[str, object]:
    """Every command by its words: `cache rm`."""
    top = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    cache = {f"cache {name}": command for name, command in top["cache"].commands.items()}
    return {**{name: one for name, one in top.items() if name != "cache"}, **cache}


def examples(command: object) -> list[str]:
    text = str(command.help).partition("Examples:\n")[2]  # pyright: ignore[reportAttributeAccessIssue]
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def data() -> Path:
    """A folder with two files, a link and an empty folder."""
    folder = Path("data")
    (folder / "sub").mkdir(parents=True)
    (folder / "train.csv").write_text("a,b\n1,2\n")
    (folder / "sub" / "notes.txt").write_text("hello\n")
    (folder / "link").symlink_to("train.csv")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def story(data: Path) -> Path:
    """Two versions of a dataset, a model made by a run from the first, one cached folder."""
    done("log", "digits", data, "--type", "dataset", "--meta", "rows=1797", "--alias", "best")
    with start_run("train", job="train-digits", uses=["digits:v1"], params={"lr": 0.1}) as run:
        _ = run.inputs[0].path
        run.log_artifact("model", data / "train.csv", type="model", aliases=["prod"])
    (data / "train.csv").write_text("a,b\n1,2\n3,4\n")
    done("log", "digits", data)
    return data


# --- all commands ---


def test_the_commands_are_those_of_the_design() -> None:
    assert set(get_command(app).commands) == COMMANDS  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("line", "built"),
    [
        ("ls log", {"ls"}),
        ("cache rm", {"cache"}),
        ("--store log ls", COMMANDS),  # here "log" is a folder
        ("--help ls", COMMANDS),
        ("lss", COMMANDS),
        ("", COMMANDS),
    ],
)
def test_only_the_command_that_comes_first_is_built(line: str, built: set[str]) -> None:
    top = get_command(part_of_app(line.split()))
    assert set(top.commands) == built  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_help_explains_every_command_in_a_line_and_shows_an_example(name: str) -> None:
    told = done(*name.split(), "--help")
    command = all_commands()[name]
    summary = str(command.help).split("\n\n")[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(summary) <= 66
    assert summary in told.out
    assert examples(command)
    for example in examples(command):
        assert example in told.out  # not wrapped, not read as markup


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_every_example_can_be_typed_as_it_stands(name: str) -> None:
    command = all_commands()[name]
    for example in examples(command):
        words = shlex.split(example.partition("&&")[0])
        at = next(at for at in range(len(words)) if words[at:][: len(name.split())] == name.split())
        rest = words[at + len(name.split()) :]
        # Parses and converts everything, and does nothing.
        command.make_context(name, rest)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "line",
    [
        "init project",
        "log other data --type dataset",
        "ls",
        "ls digits",
        "ls digits:v1",
        "show digits:v1",
        "show model",
        "history digits",
        "history digits --alias best",
        "get digits:v1 there",
        "get begat://digits:v1/train.csv there.csv",
        "diff digits:v1 digits:v2",
        "lineage model",
        "run --name x -- true",
        "runs",
        "alias digits:v2 best",
        "alias --rm best digits",
        "tag digits:v1 seen",
        "tag digits gold --artifact",
        "rm digits:v2 --yes --force",
        "verify",
        "verify digits:v1",
        "gc",
        "gc --delete",
        "stale",
        "why model",
        "doctor",
        "cache ls",
        "cache rm --all",
        "cache prune --to 0",
        "sync",
        "backup copy.sqlite",
    ],
)
def test_json_of_every_command_parses_and_nothing_else_is_on_stdout(story: Path, line: str) -> None:
    before, dash, after = line.partition(" -- ")
    told = begat(*before.split(), "--json", *((dash.strip(), *after.split()) if dash else ()))
    assert told.code == (1 if line == "stale" else 0), told.err
    found = told.json
    assert isinstance(found, list | dict)
    for one in found if isinstance(found, list) else [found]:
        assert all(name == name.lower() and "-" not in name for name in one)


def test_every_command_is_among_those_whose_json_is_tried() -> None:
    [tried] = [
        mark.args[1]
        for mark in test_json_of_every_command_parses_and_nothing_else_is_on_stdout.pytestmark
    ]
    assert {line.split()[0] for line in tried} == COMMANDS - {"rebuild"}  # see test_cli_care


def test_what_is_typed_wrong_is_told_in_a_line_and_exits_with_2(story: Path) -> None:
    for line in (
        "nothing-such",
        "ls --nothing-such",
        "log digits",
        "log digits data --bump huge",
        "log digits data --meta novalue",
        "log digits data --version 1.0.0 --bump minor",
        "ls digits --type dataset",
        "get begat://digits:v1/train.csv --include *.csv",
        "lineage model --dot --svg",
        "lineage model out.svg",
        "alias digits:v1",
        "rm digits:v1",
        "verify --read-data-subset 3/2",
        "verify digits --read-data-subset 1/2",
        "cache rm",
        "run",
        "run --out novalue -- true",
        "runs --limit 0",
    ):
        told = begat(*line.split())
        assert told.code == 2, line
        assert told.out == ""
        assert told.err.startswith("begat")
        assert told.err.count("\n") == 1, told.err
        assert "--help)" in told.err


def test_version_says_the_version() -> None:
    import begat as package

    assert done("--version").out == f"{package.__version__}\n"


# --- init, and which store is meant ---


def test_init_makes_a_store_that_is_found_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEGAT_STORE")
    assert "made the store" in done("init").out
    assert "is a store already" in done("init").out
    Path("deep/er").mkdir(parents=True)
    monkeypatch.chdir("deep/er")
    assert done("ls", "--json").json == []


def test_init_keeps_the_store_out_of_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEGAT_STORE")
    done("init", "project")
    assert Path("project/.begat/.gitignore").read_text() == "*\n"


def test_init_says_so_when_another_store_goes_first(isolated: Path) -> None:
    told = done("init")
    assert str(isolated / "store") in told.err
    assert "BEGAT_STORE" in told.err


def test_a_reading_command_makes_no_store(isolated: Path) -> None:
    for line in ("ls", "show digits", "stale", "gc", "verify", "runs", "sync"):
        told = begat(*line.split())
        assert told.code == 1
        assert "there is no store" in told.err
    assert not (isolated / "store").exists()


def test_the_store_option_goes_before_everything_else(story: Path, isolated: Path) -> None:
    told = begat("--store", "elsewhere", "log", "x", story)
    assert told.code == 0
    assert [one["name"] for one in done("--store", "elsewhere", "ls", "--json").json] == ["x"]
    assert "x" not in [one["name"] for one in done("ls", "--json").json]


def test_a_folder_with_a_store_in_it_is_not_taken_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BEGAT_STORE")
    done("init", "project")
    told = begat("--store", "project", "ls")
    assert told.code == 1
    assert "did you mean" in told.err


# --- log and get ---


def test_log_says_what_was_stored(data: Path) -> None:
    told = done("log", "digits", data, "--json").json
    assert (told["ref"], told["is_new"], told["file_count"]) == ("digits:v1", True, 2)
    assert told["new_bytes"] > 0
    assert told["shared_bytes"] == 0
    again = done("log", "digits", data).out
    assert again == "digits:v1 is unchanged: 2 files, 14 B, no new version\n"


def test_bytes_have_the_same_words_and_numbers_everywhere(data: Path) -> None:
    """Logical, new and shared: of what was logged, of a version, of a list, of an artifact."""
    done("log", "digits", data)
    told = done("log", "copy", data, "--json").json
    names = ("size_bytes", "new_bytes", "shared_bytes")
    logical, new, shared = (told[name] for name in names)
    assert logical == shared == len("a,b\n1,2\n") + len("hello\n")
    for command in (("show", "copy"), ("ls", "copy"), ("history", "copy"), ("ls",)):
        found = done(*command, "--json").json
        facts = found if isinstance(found, dict) else found[0]
        assert [facts[name] for name in names] == [logical, new, shared]
        cells = [size_text(value) for value in (logical, new, shared)]
        text = done(*command).out
        if command[0] == "show":
            assert f"{cells[0]} logical, {cells[1]} new, {cells[2]} shared" in text
            continue
        heading, row = text.splitlines()[:2]
        assert re.search(r"LOGICAL +NEW +SHARED", heading)
        assert re.search(" +".join(map(re.escape, cells)), row)
    more = data / "more.txt"
    more.write_text("more")
    text = done("log", "copy", data).out
    assert re.search(rf"copy:v2 is new: .* \(\d+ B new, {size_text(shared)} shared\)", text)


def test_log_takes_labels_and_metadata(data: Path) -> None:
    metadata = [
        "--meta",
        "lr=1e-3",
        "--meta",
        "note=a b",
        "--meta",
        'list=["x"]',
        "--meta",
        "n=NaN",
    ]
    labels = ["--type", "dataset", "--alias", "best", "--tag", "seen", "--version", "1.4.0"]
    done("log", "digits", data, *metadata, *labels, "--description", "ten digits")
    told = done("show", "digits:1.4.0", "--json").json
    assert told["metadata"] == {"lr": 0.001, "note": "a b", "list": ["x"], "n": "NaN"}
    assert (told["type"], told["aliases"], told["tags"]) == ("dataset", ["best"], ["seen"])
    assert told["description"] == "ten digits"
    done("log", "digits", data, "--bump", "minor", "--if-unchanged", "new")
    assert done("show", "digits", "--json").json["version"] == "1.5.0"


def test_metadata_that_only_begins_like_json_is_text(data: Path) -> None:
    deep, long = "[" * 100_000, "1" * 5_000
    done("log", "digits", data, "--meta", f"deep={deep}", "--meta", f"long={long}")
    assert done("show", "digits", "--json").json["metadata"] == {"deep": deep, "long": long}


def test_log_puts_several_paths_into_one_version(data: Path) -> None:
    Path("more.txt").write_text("more")
    done("log", "digits", data, "more.txt", "--exclude", "sub/**")
    paths = [entry["path"] for entry in done("ls", "digits:v1", "--json").json]
    assert "more.txt" in paths
    assert "train.csv" in paths
    assert "sub/notes.txt" not in paths


def test_get_writes_what_was_logged(story: Path) -> None:
    told = done("get", "digits:v1")
    assert "digits-v1" in told.out
    assert Path("digits-v1/train.csv").read_text() == "a,b\n1,2\n"
    assert os.readlink("digits-v1/link") == "train.csv"


def test_get_of_a_path_writes_one_file(story: Path) -> None:
    done("get", "begat://digits:v1/sub/notes.txt")
    assert Path("notes.txt").read_text() == "hello\n"
    done("get", "begat://digits:v1/sub/notes.txt", "renamed.txt")
    assert Path("renamed.txt").read_text() == "hello\n"
    Path("folder").mkdir()
    done("get", "begat://digits:v1/sub/notes.txt", "folder")
    assert Path("folder/notes.txt").read_text() == "hello\n"


def test_get_does_not_overwrite_unless_told_to(story: Path) -> None:
    Path("train.csv").write_text("mine")
    told = begat("get", "begat://digits:v1/train.csv")
    assert told.code == 1
    assert "train.csv" in told.err
    assert Path("train.csv").read_text() == "mine"
    told = done("get", "begat://digits:v1/train.csv", "--overwrite", "preserve")
    assert "begat: " in told.err  # the warning, in a line of its own
    assert Path("train.csv").read_text() == "mine"
    done("get", "begat://digits:v1/train.csv", "--overwrite", "overwrite")
    assert Path("train.csv").read_text() == "a,b\n1,2\n"


def test_get_of_what_is_no_file_is_refused(story: Path) -> None:
    for path in ("nothing", "sub", "link", "empty"):
        told = begat("get", f"begat://digits:v1/{path}")
        assert told.code == 1
        assert "is not a file of digits:v1" in told.err
        assert ("--include 'sub/**'" in told.err) == (path == "sub")
        assert not Path(path).exists()


def test_get_includes_only_what_fits(story: Path) -> None:
    told = done("get", "digits:v1", "there", "--include", "**/*.txt", "--include", "sub/*")
    assert told.out == f"digits:v1 -> there{os.sep} (1 of 2 files, 6 B)\n"
    assert [str(path) for path in Path("there").rglob("*.*")] == ["there/sub/notes.txt"]


# --- looking ---


def test_ls_lists_artifacts_versions_and_files(story: Path) -> None:
    assert [line.split()[0] for line in done("ls").out.splitlines()] == ["NAME", "digits", "model"]
    assert [one["name"] for one in done("ls", "--type", "model", "--json").json] == ["model"]
    assert [one["name"] for one in done("ls", "--query", "IGI", "--json").json] == ["digits"]
    assert [one["ref"] for one in done("ls", "digits", "--json").json] == ["digits:v1", "digits:v2"]
    for ref in ("digits:latest", "digits:v2", "begat://digits:v2"):
        entries = done("ls", ref, "--json").json
        assert [(one["kind"], one["path"]) for one in entries] == [
            ("directory", "empty"),
            ("symlink", "link"),
            ("file", "sub/notes.txt"),
            ("file", "train.csv"),
        ]
    assert [one["path"] for one in done("ls", "begat://digits:v1/sub", "--json").json] == [
        "sub/notes.txt"
    ]


def test_an_artifact_whose_name_holds_latest_is_listed_by_versions(data: Path) -> None:
    done("log", "latest-data", data)
    assert [one["ref"] for one in done("ls", "latest-data", "--json").json] == ["latest-data:v1"]


def test_tables_are_aligned_and_never_cut(data: Path) -> None:
    name = "a/" + "long" * 30
    done("log", name, data, "--description", "ein Datensatz mit vielen Worten " * 5)
    head, line = done("ls").out.splitlines()
    assert name in line
    assert line.index("data") == head.index("TYPE")
    head, line = done("history", name).out.splitlines()
    assert line.index("ein Datensatz") == head.index("DESCRIPTION")
    assert line.endswith("Worten")


def test_show_tells_all_of_a_version(story: Path) -> None:
    told = done("show", "digits:v1", "--json").json
    [run] = done("runs", "--json").json
    assert told["consumed_by"] == [run["id"]]
    assert told["metadata"] == {"rows": 1797}
    text = done("show", "model").out
    assert "made by" in text
    assert "train (" in text
    assert "prod, latest" in text


def test_show_tells_all_of_a_run(story: Path) -> None:
    [run] = done("runs", "--json").json
    told = done("show", run["id"][:13], "--json").json
    assert (told["status"], told["params"], told["inputs"], told["outputs"]) == (
        "finished",
        {"lr": 0.1},
        ["digits:v1"],
        ["model:v1"],
    )
    assert [edge["kind"] for edge in told["edges"]] == ["used", "made"]
    text = done("show", run["id"]).out
    assert "used" in text
    assert "digits:v1" in text
    assert "lr: 0.1" in text


def test_history_keeps_what_was_deleted(story: Path) -> None:
    done("rm", "digits:v2", "--yes")
    assert [one["ref"] for one in done("ls", "digits", "--json").json] == ["digits:v1"]
    told = done("history", "digits", "--json").json
    assert [(one["ref"], one["state"]) for one in told] == [
        ("digits:v1", "live"),
        ("digits:v2", "deleted"),
    ]
    assert "train" in done("history", "model").out


def test_diff_marks_what_differs(story: Path) -> None:
    (story / "new.txt").write_text("new")
    (story / "sub" / "notes.txt").rename(story / "sub" / "moved.txt")
    done("log", "digits", story)
    lines = done("diff", "digits:v1", "digits:v3").out.splitlines()
    assert "+ new.txt  (3 B)" in lines
    assert "~ train.csv  (8 B -> 12 B)" in lines
    assert "> sub/notes.txt -> sub/moved.txt" in lines
    assert done("diff", "digits:v1", "digits:v1", "--json").json["is_empty"] is True


def test_runs_are_chosen_by_job_status_and_tag(story: Path) -> None:
    store = open_store()
    store.start_run("open", tags=["night"]).finish("failed")
    assert [one["name"] for one in done("runs", "--status", "failed", "--json").json] == ["open"]
    assert [one["name"] for one in done("runs", "--tag", "night", "--json").json] == ["open"]
    assert [one["name"] for one in done("runs", "--job", "train-digits", "--json").json] == [
        "train"
    ]
    assert [one["name"] for one in done("runs", "--limit", "1", "--json").json] == ["open"]
    assert done("runs", "--status", "lost", "--json").json == []


def test_a_run_is_looked_up_by_what_is_printed_of_it(story: Path) -> None:
    ran = done("run", "--uses", "digits:v1", "--", "true").err
    name = ran.split()[3]  # begat: the run run-0f89be (...) is finished
    assert name.startswith("run-")
    [_, printed, *_] = done("runs", "--limit", "1").out.splitlines()[1].split()
    assert printed == name
    for line in (f"show {name}", f"show {done('show', name, '--json').json['id'][:20]}"):
        assert done(*line.split()).out.startswith(f"run {name}")
    assert name in done("lineage", name).out
    assert done("show", "train").out.startswith("run train")
    start_run("train").finish()
    for command in ("show", "lineage"):
        told = begat(command, "train")
        assert told.code == 1
        assert "fits several runs" in told.err
        assert all(
            run["id"] in told.err for run in done("runs", "--json").json if run["name"] == "train"
        )
        assert "No run is called so" in begat(command, "trian").err


def test_a_file_is_named_as_it_is_printed(story: Path) -> None:
    told = done("get", "begat://digits:v1/train.csv", "one.csv")
    assert told.out.split()[0] == "digits:v1/train.csv"
    done("get", told.out.split()[0], "two.csv")
    assert Path("two.csv").read_text() == Path("one.csv").read_text()
    assert "sub/notes.txt" in done("ls", "digits:v1/sub").out
    assert begat("get", "digits:v1/../x").code == 1


def test_a_list_of_runs_that_was_cut_says_so(data: Path) -> None:
    store = open_store()
    for at in range(21):
        store.start_run(f"run-{at:02}").finish()
    told = done("runs")
    assert len(told.out.splitlines()) == 21  # a heading and twenty
    assert "--limit" in told.err
    assert len(done("runs", "--json").json) == 21
    assert done("runs", "--limit", "21").err == ""


def test_a_run_that_made_a_hundred_versions_takes_one_readable_line(data: Path) -> None:
    store = open_store()
    with start_run("train") as run:
        for at in range(100):
            run.log_artifact("net", f"{at}".encode())
    told = done("runs").out.splitlines()[1]
    assert "  net:v1, net:v2, net:v3 and 97 more" in told
    assert len(done("runs", "--json").json[0]["outputs"]) == 100
    with start_run("short") as run:
        for at in range(4):
            run.log_artifact("few", f"{at}".encode())
    assert "few:v1, few:v2, few:v3, few:v4" in done("runs").out
    assert store.get_run(run.id).status == "finished"


# --- lineage ---


def test_lineage_is_drawn_in_four_ways(story: Path) -> None:
    tree = done("lineage", "model", "--up").out
    assert tree.splitlines()[0].startswith("model:v1")
    assert "digits:v1" in tree
    told = done("lineage", "digits:v1", "--down", "--json").json
    assert [one["ref"] for one in told["versions"]] == ["digits:v1", "model:v1"]
    assert done("lineage", "model", "--dot").out.startswith("digraph")
    assert "<svg" in done("lineage", "model", "--svg").out
    done("lineage", "model", "--svg", "out.svg")
    assert Path("out.svg").read_text().rstrip().endswith("</svg>")
    [run] = done("runs", "--json").json
    told = done("lineage", run["id"], "--json").json
    assert told["roots"] == [run["id"]]


def test_stale_exits_with_1_and_names_ref_steps_and_reason(story: Path) -> None:
    told = begat("stale")
    assert told.code == 1
    [line] = [line for line in told.out.splitlines() if line.startswith("model:v1")]
    assert "1 step" in line
    assert "digits:v2" in line
    [found] = begat("stale", "--json").json
    assert (found["ref"], found["steps"]) == ("model:v1", 1)
    assert found["behind"] == [{"input": "digits:v1", "requested": "digits:v1", "now": "digits:v2"}]
    assert done("stale", "--ignore-pinned").err == "nothing is stale\n"
    assert done("why", "model").out.startswith("model:v1 is stale")
    assert done("why", "model", "--ignore-pinned", "--json").json["is_stale"] is False


# --- labels ---


def test_an_alias_moves_only_from_where_it_is_expected(story: Path) -> None:
    assert begat("alias", "digits:v2", "best", "--expect", "absent").code == 1
    assert begat("alias", "digits:v2", "best", "--expect", "digits:v2").code == 1
    assert done("show", "digits:best", "--json").json["number"] == 1
    told = done("alias", "digits:v2", "best", "--expect", "digits:v1", "--json").json
    assert (told["from_number"], told["to_number"]) == (1, 2)
    done("alias", "digits:v2", "fresh", "--expect", "absent")
    assert begat("alias", "digits:v1", "best", "--expect", "model:v1").code == 1
    assert "it was v2" in done("alias", "--rm", "best", "digits", "--expect", "v2").out
    moves = done("history", "digits", "--alias", "best", "--json").json
    assert [(move["from_number"], move["to_number"]) for move in moves] == [
        (None, 1),
        (1, 2),
        (2, None),
    ]


def test_tags_are_put_on_and_taken_off(story: Path) -> None:
    assert done("tag", "digits", "seen", "clean").out == "digits:v2: clean, seen\n"
    assert done("tag", "digits:v2", "seen", "--rm", "--json").json["tags"] == ["clean"]
    done("tag", "digits", "gold", "--artifact")
    assert [one["name"] for one in done("ls", "--tag", "gold", "--json").json] == ["digits"]


def test_deletion_needs_a_yes_and_a_number(story: Path) -> None:
    told = begat("rm", "digits:v1")
    assert told.code == 2
    assert "--yes" in told.err
    assert begat("rm", "digits", "--yes").code == 1
    assert "best" in begat("rm", "digits:v1", "--yes").err  # it has an alias
    assert [one["number"] for one in done("ls", "digits", "--json").json] == [1, 2]
    done("rm", "digits:v1", "--yes", "--force")
    for line in ("ls digits:v1", "get digits:v1", "diff digits:v1 digits:v2"):
        told = begat(*line.split())
        assert told.code == 1
        assert "deleted" in told.err


def test_a_deleted_version_is_shown_as_deleted_with_its_lineage(story: Path) -> None:
    digest = done("show", "digits:v1", "--json").json["digest"]
    done("rm", "digits:v1", "--yes", "--force")
    for ref in ("digits:v1", f"digits@{digest}"):
        lines = done("show", ref).out.splitlines()
        assert [line.split() for line in lines if "state" in line] == [["state", "deleted"]]
        told = done("lineage", ref, "--down", "--json").json
        assert [one["ref"] for one in told["versions"]] == ["digits:v1", "model:v1"]
        assert "deleted" in done("lineage", ref).out.splitlines()[0]
        assert "was deleted" in done("why", ref).out


def test_a_path_is_refused_where_a_version_is_meant(story: Path) -> None:
    for ref in ("begat://digits:v1/train.csv", "digits:v1/train.csv"):
        for line in (f"show {ref}", f"lineage {ref}", f"why {ref}", f"run --uses {ref} -- true"):
            told = begat(*line.split())
            assert told.code == 1
            assert "begat get" in told.err


# --- errors, and what others wrote ---


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc", "-x", "", " ", "a b", "a:v1", "a\nb", "a\x1b[31m", "ä", "a//b", ".x"),
        *("a" * 300, "begat://x", "$(touch hacked)", "https://me:hunter2@host/?sig=abc"),
    ],
)
def test_hostile_names_are_refused_in_a_line_and_nothing_is_stored(
    data: Path, name: str, isolated: Path
) -> None:
    tries = [
        ("log", name, data),
        ("log", "fine", data, "--type", name),
        ("log", "fine", data, "--alias", name),
        ("log", "fine", data, "--tag", name),
        ("log", "fine", data, "--version", name),
        ("run", "--tag", name, "--", "touch", "hacked"),
    ]
    if name != "a:v1":  # there, a name with a type
        tries.append(("run", "--out", f"{name}={data}", "--", "touch", "hacked"))
    for words in tries:
        told = begat(*words)
        assert told.code in (1, 2), words
        assert told.out == ""
        assert "Traceback" not in told.err
        assert "bug" not in told.err
        assert "hunter2" not in told.err
        assert told.err.count("\n") == 1
        assert told.err[:-1].isprintable()
    assert not Path("hacked").exists()
    assert not (isolated / "store").exists() or open_store().artifacts() == []


@pytest.mark.parametrize(
    "ref",
    ["../x", "x:", "x:v0", "x@b3:", "begat://", "begat://x:v1/../../etc", "https://a@b", "a\x1bb"],
)
def test_hostile_references_are_refused_in_a_line(story: Path, ref: str) -> None:
    for words in (
        ("ls", ref),
        ("show", ref),
        ("get", ref, "there"),
        ("diff", ref, "digits"),
        ("lineage", ref),
        ("why", ref),
        ("alias", ref, "x"),
        ("tag", ref, "x"),
        ("rm", ref, "--yes"),
        ("verify", ref),
        ("run", "--uses", ref, "--", "touch", "hacked"),
    ):
        told = begat(*words)
        assert told.code == 1, words
        assert "Traceback" not in told.err
        assert "bug" not in told.err
        assert told.err[:-1].isprintable()
    assert not Path("hacked").exists()
    assert not Path("there").exists()


def test_what_others_wrote_cannot_steer_the_terminal(data: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202eabc"
    (data / "\u0430.txt").write_text("cyrillic, and fine")
    with start_run(evil.replace("\n", ""), job=evil, params={"p": evil}) as run:
        run.log_artifact("digits", data, metadata={evil: evil}, description=evil)
    for words in (
        ("ls",),
        ("ls", "digits"),
        ("ls", "digits:v1"),
        ("show", "digits"),
        ("show", run.id),
        ("history", "digits"),
        ("runs",),
        ("lineage", "digits"),
        ("why", "digits"),
        ("gc", "--explain"),
    ):
        told = done(*words)
        assert all(line.isprintable() for line in (told.out + told.err).splitlines()), words


def test_an_error_is_one_line_and_debug_shows_where(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = begat("show", "digits:v9")
    assert told.code == 1
    assert told.out == ""
    assert told.err.startswith("begat: 'digits:v9' does not exist")
    assert told.err.count("\n") == 1
    assert "Traceback" in begat("--debug", "show", "digits:v9").err
    monkeypatch.setenv("BEGAT_DEBUG", "1")
    assert "Traceback" in begat("show", "digits:v9").err
    monkeypatch.setenv("BEGAT_DEBUG", "0")
    assert "Traceback" not in begat("show", "digits:v9").err


def test_a_bug_is_one_line_too(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **more: object) -> None:
        raise ZeroDivisionError("a surprise")

    monkeypatch.setattr("begat.store.Store.artifacts", fails)
    told = begat("ls")
    assert told.code == 1
    assert told.err.count("\n") == 1
    assert "ZeroDivisionError: a surprise" in told.err
    assert "Traceback" in begat("--debug", "ls").err


def test_ctrl_c_is_quiet(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("begat.store.Store.artifacts", interrupted)
    told = begat("ls")
    assert (told.code, told.out, told.err) == (130, "", "")


# --- completion ---


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch):
    def complete(words: str) -> set[str]:
        monkeypatch.setenv("_BEGAT_COMPLETE", "complete_fish")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
        told = begat()
        monkeypatch.delenv("_BEGAT_COMPLETE")
        assert told.err == ""
        return {line.partition("\t")[0] for line in told.out.splitlines() if line}

    return complete


def test_the_shell_completes_commands_names_references_and_runs(story: Path, complete) -> None:
    assert complete("begat hist") == {"history"}
    assert complete("begat log di") == {"digits"}
    assert complete("begat get ") == {"digits", "model"}
    assert complete("begat get digits:") == {
        *("digits:v1", "digits:v2", "digits:best", "digits:latest"),
    }
    assert complete("begat run --uses mod") == {"model"}
    [run] = done("runs", "--json").json
    assert complete(f"begat show {run['id'][:8]}") == {run["id"]}


def test_completion_without_a_store_is_empty_and_quiet(complete, isolated: Path) -> None:
    assert complete("begat get ") == set()
    assert not (isolated / "store").exists()
    done("--store", "elsewhere", "init")
    assert complete("begat --store nothing get ") == set()


def test_completion_looks_into_the_store_that_was_named(story: Path, complete) -> None:
    done("--store", "elsewhere", "log", "other", story)
    assert complete("begat --store elsewhere get ") == {"other"}


def test_runs_are_completed_by_name_too(story: Path, complete) -> None:
    assert complete("begat show tr") == {"train"}
    start_run("train").finish()
    assert complete("begat show tr") == set()  # two runs: which one is meant only their ids say


BASH_ASKS = """
source <(begat --show-completion bash)
COMP_LINE=$1 COMP_POINT=${#1}
_begat_completion begat
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def bash(monkeypatch: pytest.MonkeyPatch):
    """Bash, in which `begat` is this checkout's: what a script prints there, given some arguments."""
    Path("bin").mkdir()
    Path("bin/begat").write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    Path("bin/begat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}")

    def bash(script: str, *arguments: str) -> str:
        told = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        assert (told.returncode, told.stderr) == (0, "")
        return told.stdout

    return bash


@pytest.mark.parametrize(
    ("typed", "answers"),
    [
        ("begat hist", {"history"}),
        ("begat get di", {"digits"}),
        ("begat get ", {"digits", "model"}),
        # What stands before the last : or = is left as it is by bash, which takes it for a word of its own.
        ("begat get digits:v", {"v1", "v2"}),
        ("begat run --uses digits:b", {"best"}),
        ("begat run --uses=digits:b", {"best"}),
        ("begat run --uses=di", {"digits"}),
        ("begat get nothing:", {""}),
    ],
)
def test_bash_completes_what_stands_after_a_colon(
    story: Path, bash, typed: str, answers: set[str]
) -> None:
    assert set(bash(BASH_ASKS, typed).removesuffix("\n").split("\n")) == answers
    whole = bash("COMP_WORDBREAKS=' '\n" + BASH_ASKS, "begat get digits:v")
    assert set(whole.split()) == {"digits:v1", "digits:v2"}


def test_tab_completes_a_reference_in_an_interactive_bash(story: Path, bash) -> None:
    inside, terminal = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment(), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(terminal)
    os.write(inside, b"source <(begat --show-completion bash)\n")
    os.write(inside, b"begat get digits:be\tthere; exit\n")
    said = b""
    with contextlib.suppress(OSError):  # the terminal is gone with its process
        while piece := os.read(inside, 1024):
            said += piece
    os.close(inside)
    assert process.wait(60) == 0, said
    assert Path("there/train.csv").is_file(), said


def test_the_completion_of_a_shell_is_that_of_the_shell_that_was_named() -> None:
    told = {shell: done("--show-completion", shell).out for shell in ("bash", "zsh", "fish")}
    assert told["bash"].startswith("_begat_completion()")
    assert told["zsh"].startswith("#compdef begat")
    assert told["fish"].startswith("complete --command begat")
    assert done("--show-completion", "powershell").out.startswith("Import-Module")
    for words in (["--show-completion"], ["--show-completion", "ksh"]):
        refused = begat(*words)
        assert (refused.code, refused.out) == (2, "")
    assert "'bash', 'zsh', 'fish'" in refused.err


def test_completion_is_installed_where_the_shell_reads_it(isolated: Path) -> None:
    home = isolated / "home"
    (home / ".bashrc").write_text("alias ll='ls -l'\n")
    assert str(home) in done("--install-completion", "bash").out
    assert (home / ".bashrc").read_text().startswith("alias ll='ls -l'\n")
    script = "source ~/.bashrc; complete -p begat; declare -f _begat_completion"
    told = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert "-F _begat_completion begat" in told.stdout
    assert "COMP_WORDBREAKS" in told.stdout
    done("--install-completion", "fish")
    assert (home / ".config/fish/completions/begat.fish").is_file()


def test_json_is_ascii_whatever_it_tells(data: Path) -> None:
    done("log", "digits", data, "--description", "Größe 🎲")
    told = done("show", "digits", "--json")
    assert told.out.isascii()
    assert json.loads(told.out)["description"] == "Größe 🎲"
