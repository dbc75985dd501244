"""The benchmarks run, on works so small that their figures say nothing: no bar is a matter of a test here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_work_gives_its_figures(tmp_path: Path) -> None:
    found = bench("--tiny", "--turns", "1", "--disk", tmp_path, "--json", tmp_path / "out.json")
    assert found.returncode == 0, found.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    works = re.findall(r"^\| `(\w+)` \|", (BENCHMARKS / "README.md").read_text(), re.MULTILINE)
    assert list(dict.fromkeys(row["work"] for row in told["rows"])) == works
    for row in told["rows"]:
        assert row["figure"]["value"] >= 0
        assert row["text"] in found.stdout
        if row["floor"]:
            assert row["floor_s"] > 0
            assert row["ours_s"] > 0
            assert len(row["turns"]) == 1
    memory = [row["anonymous_bytes"] for row in told["rows"] if row["floor"] == "cp"]
    assert memory
    assert all(value > 1_000_000 for value in memory)
    assert {"date", "cpu", "cores", "python"} <= set(told["machine"])


def test_one_work_as_a_table_for_the_readme(tmp_path: Path) -> None:
    found = bench("--tiny", "--turns", "1", "--only", "files", "--markdown", "--folder", tmp_path)
    assert found.returncode == 0, found.stderr
    heading, rule, *rows = found.stdout.strip().splitlines()
    assert heading.startswith("| work | floor |")
    assert set(rule) == {"|", "-", " "}
    assert [row.split("|")[2].strip() for row in rows] == ["read all, write one", "cp -r"]


@pytest.mark.slow
def test_other_tools_are_measured_where_they_are_installed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    found = bench("--tiny", "--turns", "1", "--peers", sys.executable, "--json", out)
    assert found.returncode == 0, found.stderr
    rows = json.loads(out.read_text())["rows"]
    measured = {row["text"].partition(":")[0] for row in rows}
    assert {"begat", "MLflow, SQLite"} <= measured  # MLflow comes with the tests of its integration
    missing = set(re.findall(r"peers: (.*) is not installed", found.stderr))
    assert len(measured - {"begat"}) + len(missing) == 5
    for row in rows:
        assert row["ours_s"] > 0
        assert row["stored_bytes"] > 1_000_000


def test_a_work_that_does_not_exist_is_named() -> None:
    found = bench("--only", "nothing")
    assert found.returncode == 2
    assert "'nothing'" in found.stderr


@pytest.mark.slow
def test_what_versions_share_is_stored_once(tmp_path: Path) -> None:
    """The bars of deduplication: which bytes are stored is no matter of time, so it is tested."""
    found = bench("--tiny", "--only", "dedup", "--json", tmp_path / "out.json")
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["text"] for row in rows if row["is_missed"]] == []
    assert len([row for row in rows if row["figure"]["bar"]]) == 8
    [tuned] = [row["figure"]["value"] for row in rows if row["text"].startswith("full fine-tune")]
    assert tuned == pytest.approx(1, abs=0.01)  # nothing is shared, and next to nothing is added
