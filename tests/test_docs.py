"""The documentation is true: each page's code runs in order and prints what it shows, and the command list is complete.

In a page, ```python blocks and the `$` lines of ```console blocks run one after the other, in one namespace and one
fresh folder. A ```text block after a python block, and the lines after a `$` line, are the output to compare; times,
dates, ids and sizes of records are not compared. Blocks in ```sh are for reading only.

    python tests/test_docs.py        writes docs/cli.md anew
"""

import contextlib
import io
import json
import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CLI_PAGE = DOCS / "cli.md"
FORMATS = ROOT / "core/README.md"
LINKED = [*PAGES, FORMATS, ROOT / "integrations/README.md", ROOT / "SECURITY.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
USER = pwd.getpwuid(os.getuid()).pw_name
VARYING = [
    (re.compile(r"\b\d+(\.\d+)? (ms|s|min|h|d)\b"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?"), "DATE"),
    (re.compile(r"\b[0-9a-f]{2}/[0-9a-f]{64}-[0-9a-f]{8}\b"), "OBJECT"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}(-[0-9a-f-]+)?\b"), "ID"),
    (re.compile(r"\b(run|[a-z][\w-]*)-[0-9a-f]{6}\b"), r"\1-ID"),
    # Records beside the bytes name host, user and command line, and the catalog is made of pages.
    (re.compile(r"\b\d+(\.\d)? kB|\b\d+ B(?= new)"), "SIZE"),
    (re.compile(rf"\b{re.escape(USER)}\b"), "ada"),
    (re.compile(r" +$", re.MULTILINE), ""),
]
# Run by the shell: what is more than words, and what starts or replaces something that outlives the command.
FOR_THE_SHELL = re.compile(r"^(?!begat )|[|&;<>$`*]|^begat (run|rebuild)\b")


@dataclass(frozen=True)
class Step:
    """One thing a page shows: code or a command, and what it is said to print (None: not said)."""

    kind: str
    code: str
    shown: str | None
    line: int


def steps_of(page: Path) -> Iterator[Step]:
    text = page.read_text("utf-8")
    blocks = list(FENCE.finditer(text))
    for block, following in zip_longest(blocks, blocks[1:]):
        line = text[: block.start()].count("\n") + 2
        if block[1] == "python":
            is_output = following is not None and following[1] == "text"
            between = text[block.end() : following.start()].strip() if following else ""
            shown = following[2] if following and is_output and not between else None
            yield Step("python", block[2], shown, line)
        elif block[1] == "console":
            for command in re.split(r"^\$ ", block[2], flags=re.MULTILINE)[1:]:
                first, _, rest = command.partition("\n")
                yield Step("console", first, rest or None, line)


def same(text: str) -> str:
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    # Columns are as wide as what they hold, and so are rules; what they hold is compared.
    return re.sub(r"[ ─]{2,}", "  ", text).strip()


def run_step(step: Step, page: Path, names: dict[str, Any], path: str) -> str:
    """Run one step as a user of a shell or a prompt would; what it printed."""
    if step.kind == "python":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (step.line - 1) + step.code, str(page), "exec"), names)
        return out.getvalue()
    if not FOR_THE_SHELL.search(step.code):
        from begat.cli import main

        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, "utf-8", write_through=True)  # as a terminal that can draw
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(shlex.split(step.code)[1:])
        printed = raw.getvalue().decode()
        assert code == 0, f"{page.name}: $ {step.code}\n{printed}"
        return printed
    done = subprocess.run(
        ["bash", "-c", step.code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, f"{page.name}: $ {step.code}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def path(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PATH with `begat` and `python`, and a user who has configured nothing."""
    monkeypatch.delenv("BEGAT_STORE")
    roots = os.pathsep.join(str(ROOT / name) for name in ("core", "integrations"))
    monkeypatch.setenv("PYTHONPATH", roots)
    monkeypatch.setenv("COLUMNS", "120")
    commands = isolated / "bin"
    commands.mkdir()
    for name, start in (("begat", f"{sys.executable} -m begat"), ("python", sys.executable)):
        (commands / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n', "utf-8")
        (commands / name).chmod(0o755)
    return f"{commands}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_happens(page: Path, path: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for step in steps_of(page):
        printed = run_step(step, page, names, path)
        if step.shown is not None:
            assert same(printed) == same(step.shown), f"{page.name}, line {step.line}: {step.code}"


def test_the_pages_show_something() -> None:
    assert {step.kind for page in PAGES for step in steps_of(page)} == {"python", "console"}
    assert any(step.shown for step in steps_of(ROOT / "README.md"))


def test_a_wrong_output_would_be_noticed() -> None:
    assert same("digits:v1  3 s") == same("digits:v1      2.1 ms")
    assert same("digits:v1") != same("digits:v2")
    assert same("4 files") != same("5 files")


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    missing = [page.name for page in DOCS.glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


# --- the description of the formats ---


def test_the_example_of_a_manifest_is_the_golden_one() -> None:
    golden = json.loads((ROOT / "tests/core/golden/manifest_v1.json").read_text("utf-8"))
    [case] = [case for case in golden["cases"] if case["name"] == "one empty file"]
    text = FORMATS.read_text("utf-8")
    assert case["bytes"] in re.sub(r"\s", "", text)
    assert case["digest"] in text


def test_every_table_kind_codec_and_state_is_described() -> None:
    from typing import get_args

    from begat.model import BlobKind, Codec, VersionState
    from begat.tables import METADATA

    text = FORMATS.read_text("utf-8")
    words = {*METADATA.tables, *get_args(BlobKind), *get_args(Codec), *get_args(VersionState)}
    assert sorted(word for word in words if f"`{word}`" not in text) == []


def test_every_field_of_a_version_record_is_described() -> None:
    from begat.record import VersionFile

    text = FORMATS.read_text("utf-8")
    names = VersionFile.__struct_fields__
    assert [name for name in names if f"`{name}`" not in text] == []


# --- the list of commands ---


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of `begat --help`."""
    from typer.main import get_command

    from begat.cli import app

    def below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
            return
        for word, sub in inner.items():
            yield from below(sub, f"{name} {word}")

    return below(get_command(app), "begat")


def _cell(text: str) -> str:
    """Text in a Markdown table, where a bar would begin the next cell, in code too."""
    return text.replace("|", "\\|")


def cli_page() -> str:
    """docs/cli.md, from what `--help` knows."""
    parts = [
        "# Which commands are there?\n",
        "This page is written from the commands themselves (`python tests/test_docs.py`).",
        "`begat --store FOLDER COMMAND` uses another store than the one that `begat doctor` names.",
        "`--json` prints JSON with the attribute names of the Python objects. Exit codes: 0 all is well,",
        "1 something was found or failed, 2 the command was typed wrong, 130 after Ctrl-C;",
        "`begat run` exits as its program does.\n",
        "## Completion\n",
        "`begat --install-completion bash` (or `zsh`, `fish`, `powershell`) lets that shell complete commands,",
        "options, names, references (`begat get digits:<Tab>`) and runs, in every shell that is started afterwards.",
        "To put the script somewhere yourself, print it:\n",
        "```sh",
        'eval "$(begat --show-completion bash)"',
        "```\n",
    ]
    for name, command in commands():
        summary, *more = command.help.split("\n\n")
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join(
            text if one.required else f"[{text}]"
            for one in arguments
            for text in [(one.metavar or one.name.upper()) + ("..." if one.nargs == -1 else "")]
        )
        parts.append(f"## {name}\n\n{summary}\n\n```sh\n{f'{name} {usage}'.strip()}\n```\n")
        for text in more:
            if text.strip().startswith("Examples:"):
                lines = [line.strip() for line in text.strip().splitlines()[1:]]
                parts.append("For example:\n\n```sh\n" + "\n".join(lines) + "\n```\n")
            else:
                parts.append(f"{text}\n")
        rows = [
            f"| `{_cell(', '.join(one.opts) + (f' {one.metavar}' if one.metavar else ''))}` | {_cell(one.help)} |"
            for one in options
            if one.name != "as_json"
        ]
        if rows:
            parts.append("| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def test_the_list_of_commands_is_what_the_commands_say() -> None:
    assert CLI_PAGE.read_text("utf-8") == cli_page(), (
        "run python tests/test_docs.py to write docs/cli.md anew"
    )


def test_the_list_of_commands_is_complete() -> None:
    text = CLI_PAGE.read_text("utf-8")
    expected = {
        *(
            "init",
            "log",
            "ls",
            "show",
            "history",
            "get",
            "diff",
            "lineage",
            "run",
            "runs",
            "alias",
            "tag",
        ),
        *("rm", "verify", "gc", "stale", "why", "doctor", "sync", "backup", "rebuild"),
        *("cache ls", "cache rm", "cache prune"),
    }
    assert set(re.findall(r"^## begat (.*)$", text, re.MULTILINE)) == expected


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), "utf-8")
