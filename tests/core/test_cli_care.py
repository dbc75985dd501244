"""`begat verify`, `gc`, `backup`, `rebuild`, `sync`, `cache`, `doctor`; and the command as a process."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from begat import Recorder, open_store
from begat.cli import progress
from begat.progress import reporting
from command_line import COMMAND, begat, done, environment

BROKEN_PIPE = 141


@pytest.fixture
def data() -> Path:
    """A folder with one file, logged as `digits`."""
    Path("data").mkdir()
    Path("data/train.csv").write_text("a,b\n1,2\n")
    done("log", "digits", "data")
    return Path("data")


def damage_one_object(isolated: Path) -> None:
    [pack] = [path for path in (isolated / "store/objects").rglob("*") if path.is_file()]
    pack.chmod(0o644)
    spoiled = bytearray(pack.read_bytes())
    spoiled[3] ^= 1
    pack.write_bytes(bytes(spoiled))


# --- verify ---


def test_verify_of_a_sound_store_exits_with_0(data: Path) -> None:
    assert "all is sound: 1 version" in done("verify").out
    assert done("verify", "digits").out.startswith("digits:v1 is sound: ")
    assert done("verify", "digits:v1", "--json").json["is_sound"] is True
    assert done("verify", "--read-data-subset", "1/1", "--json").json["checked_objects"] == 1


def test_verify_says_which_part_it_read(data: Path, isolated: Path) -> None:
    assert done("verify", "--read-data-subset", "1/1").out.startswith(
        "part 1 of 1 is sound: 1 object"
    )
    parts = [done("verify", "--read-data-subset", f"{n}/7") for n in range(1, 8)]
    for n, told in enumerate(parts, start=1):
        assert told.out.startswith(f"part {n} of 7 is sound: ")
        assert "6 other parts not read" in told.out
    assert sum("1 object" in told.out for told in parts) == 1
    assert done("verify", "--read-data-subset", "2/7", "--json").json["read"] == "part 2 of 7"
    damage_one_object(isolated)
    told = begat("verify", "--read-data-subset", "1/1")
    assert "damaged in part 1 of 1: " in told.out


def test_verify_names_what_is_damaged_and_exits_with_1(data: Path, isolated: Path) -> None:
    damage_one_object(isolated)
    told = begat("verify")
    assert told.code == 1
    assert "digits:v1" in told.out
    assert "Log the same files again" in told.out
    assert begat("verify", "--json").json["is_sound"] is False
    assert begat("verify", "digits:v1").code == 1
    done("log", "digits", data)  # mends it
    done("verify", "digits:v1")


# --- gc ---


def test_gc_says_what_a_retired_version_is(data: Path) -> None:
    recorder = Recorder.attach(name="net", job="train")
    Path("a.ckpt").write_bytes(b"a" * 3000)
    recorder.saved("a.ckpt", step=1)
    recorder.removed("a.ckpt")
    Path("a.ckpt").write_bytes(b"b" * 3000)
    recorder.saved("a.ckpt", step=2)
    recorder.finish()
    told = done("gc").out
    assert "net:v1" in told
    assert "it is retired: its training removed or replaced it" in told
    done("log", "digits", "a.ckpt")
    told = done("gc", "--explain").out
    assert "begat retire" not in told
    assert "nobody deleted it (begat rm)" in told
    assert "removed or replaced" in done("gc", "--delete").out
    assert "retired" in done("gc", "--help").out


def test_gc_changes_nothing_unless_told_to(data: Path) -> None:
    done("log", "digits", "data", "--if-unchanged", "new")
    Path("data/train.csv").write_text("other\n" * 1000)
    done("log", "digits", "data")
    done("rm", "digits:v3", "--yes")
    told = done("gc")
    assert "would be freed; nothing was changed" in told.out
    assert "it is the latest" in told.out
    assert "digits:v1" not in told.out  # only counted
    assert "digits:v1" in done("gc", "--explain").out
    before = done("gc", "--json").json
    assert before["dry_run"] is True
    assert before["freed_bytes"] > 0
    after = done("gc", "--delete", "--json").json
    assert after["freed_bytes"] == before["freed_bytes"]
    assert done("gc").out.splitlines()[-1] == "nothing would go"
    done("verify")


# --- backup, rebuild, sync ---


def test_backup_is_a_catalog_and_replaces_no_file(data: Path) -> None:
    assert "wrote copy.sqlite" in done("backup", "copy.sqlite").out
    assert Path("copy.sqlite").read_bytes().startswith(b"SQLite format 3\0")
    told = begat("backup", "data/train.csv")
    assert told.code == 1
    assert Path("data/train.csv").read_text() == "a,b\n1,2\n"


def test_rebuild_asks_and_brings_the_versions_back(data: Path, isolated: Path) -> None:
    done("log", "digits", "data", "--if-unchanged", "new", "--version", "1.0.0")
    versions = done("ls", "digits", "--json").json
    for leftover in (isolated / "store").glob("catalog.sqlite*"):
        leftover.unlink()
    assert begat("rebuild").code == 2
    told = done("rebuild", "--yes", "--json").json
    assert told["problems"] == []
    again = done("ls", "digits", "--json").json
    for name in ("ref", "digest", "version", "created_at"):
        assert [one[name] for one in again] == [one[name] for one in versions]
    done("verify")


def test_sync_with_nothing_left_says_so(data: Path) -> None:
    assert done("sync").err == "nothing was left\n"


# --- cache ---


def test_the_cache_is_listed_pruned_and_emptied(data: Path) -> None:
    code = "import begat; begat.get_artifact('digits').path"
    fill = [sys.executable, "-c", code]
    subprocess.run(fill, env=environment(), check=True)
    [folder] = done("cache", "ls", "--json").json
    assert (folder["ref"], folder["size_bytes"], folder["is_in_use"]) == ("digits:v1", 8, False)
    assert Path(folder["path"], "train.csv").exists()
    assert done("cache", "prune").out == "nothing was removed\n"
    assert "removed digits:v1" in done("cache", "prune", "--to", "1B").out
    subprocess.run(fill, env=environment(), check=True)
    assert begat("cache", "rm", "digits:v2").code == 1
    done("cache", "rm", folder["digest"][:12])
    subprocess.run(fill, env=environment(), check=True)
    done("cache", "rm", "digits:v1")
    assert done("cache", "ls", "--json").json == []


def test_a_cached_folder_that_is_in_use_stays(data: Path) -> None:
    folder = open_store().get_artifact("digits").path
    told = begat("cache", "rm", "digits:v1")
    assert told.code == 1
    assert "in use, and kept: digits:v1" in told.err
    assert (folder / "train.csv").exists()


# --- doctor ---


def found(*options: str) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in begat(*options, "doctor", "--json").json}


def test_doctor_says_which_store_is_meant_and_why(
    data: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert done("doctor").err == "begat: no problem found\n"
    assert found()["store"]["value"] == f"{isolated}/store, because of: BEGAT_STORE"
    assert "because of: given" in str(found("--store", "x")["store"]["value"])
    monkeypatch.delenv("BEGAT_STORE")
    assert "the user's data folder" in str(found()["store"]["value"])
    assert "not there yet" in str(found()["opening it"]["value"])
    assert done("doctor").code == 0
    done("init")
    assert "the nearest .begat" in str(found()["store"]["value"])
    assert {"Python", "SQLite", "pyfastcdc", "cache", "writable", "journal"} <= set(found())


def test_doctor_names_problems_with_advice(
    data: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("begat.catalog.opening.file_system_of", lambda path: "nfs")
    told = begat("doctor")
    assert told.code == 1
    assert "!! catalog: a catalog must lie on a local disk" in told.out
    assert "1 problem" in told.err


def test_doctor_of_a_broken_store_tells_what_is_wrong(isolated: Path, data: Path) -> None:
    (isolated / "store" / "format.json").write_text("{")
    told = begat("doctor")
    assert told.code == 1
    assert "!! opening it: " in told.out
    assert begat("--store", "data", "doctor").code == 1  # a folder with other files
    assert begat("--store", "s3://bucket/x", "doctor").code == 1
    assert "hunter2" not in str(begat("--store", "https://me:hunter2@host/", "doctor"))


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2):  # those by which root reads and writes what nobody may: CAP_DAC_OVERRIDE, _READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command for which the modes of files hold, whoever runs the tests."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGES, *COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )


@pytest.mark.parametrize(
    ("part", "mode", "problem"),
    [
        ("objects", 0o000, "cannot be read"),
        ("objects/*", 0o000, "cannot be read"),
        ("objects", 0o500, "cannot be written"),
        ("objects/*", 0o500, "cannot be written"),
        ("tmp", 0o500, "cannot be written"),
        ("staging", 0o500, "cannot be written"),
        ("locks", 0o500, "cannot be written"),
        ("locks/writer.lock", 0o400, "cannot be written"),
        ("damaged", 0o500, "cannot be written"),
        ("catalog.sqlite", 0o400, "cannot be written"),
        ("catalog.sqlite", 0o000, "cannot be read"),
        ("format.json", 0o000, "cannot be read"),
        ("", 0o000, "cannot be read"),
        ("", 0o500, "cannot be written"),
    ],
)
def test_doctor_names_each_part_that_this_user_may_not_use(
    data: Path, isolated: Path, part: str, mode: int, problem: str
) -> None:
    root = isolated / "store"
    (root / "staging").mkdir(exist_ok=True)
    assert "permissions  " in refused("doctor").stdout
    [path] = root.glob(part) if part else [root]
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        told = refused("doctor")
    finally:
        path.chmod(before)
    assert told.returncode == 1
    name = str(path.relative_to(root)) if part else str(root)
    [line] = [line for line in told.stdout.splitlines() if line.split()[:2] == ["!!", name]]
    assert problem in line
    [advice] = [line for line in told.stdout.splitlines() if line.startswith(f"!! {name}: ")]
    assert f"chmod u+r{'' if 'read' in problem else 'w'}X {path}" in advice
    assert "bug" not in told.stderr
    assert "the system refused" not in told.stderr


def test_doctor_takes_a_store_that_nobody_may_write_as_one_to_be_read(
    data: Path, isolated: Path
) -> None:
    everything = [isolated / "store", *(isolated / "store").rglob("*")]
    before = {path: path.stat().st_mode for path in everything}
    for path in everything:
        path.chmod(before[path] & ~0o222)
    try:
        told = refused("doctor")
    finally:
        for path in everything:
            path.chmod(before[path])
    assert told.returncode == 0, told.stdout
    assert "this user may read, and not write, every part" in told.stdout


@pytest.mark.parametrize("part", ["", "locks"])
def test_a_cache_that_cannot_be_written_is_told_as_such(
    data: Path, isolated: Path, part: str
) -> None:
    folder = isolated / "cache" / part
    (isolated / "cache" / "locks").mkdir(parents=True)
    folder.chmod(0o500)
    code = "import begat; begat.open_store().get_artifact('digits').path"
    try:
        told = refused("doctor")
        used = subprocess.run(
            [sys.executable, "-c", WITHOUT_PRIVILEGES, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    finally:
        folder.chmod(0o700)
    assert told.returncode == 1
    assert f"no, {folder} cannot be written" in told.stdout
    assert "set BEGAT_CACHE to one" in told.stdout
    last = used.stderr.splitlines()[-1]
    assert (
        f"AccessDenied: {'the' if part else 'using the'} cache folder {isolated / 'cache'} " in last
    )
    assert "BEGAT_CACHE" in last
    assert f"Permission denied ({folder}" in last
    assert str(isolated / "store") not in last


def test_doctor_sees_known_damage(data: Path, isolated: Path) -> None:
    damage_one_object(isolated)
    assert begat("verify").code == 1
    assert "!! damaged objects" in begat("doctor").out
    done("log", "digits", data)
    done("verify")
    done("gc", "--delete")  # as doctor says of what was mended
    done("doctor")


def test_doctor_names_settings_that_stop_other_commands(
    data: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEGAT_COMPRESSION", "gzip")
    told = begat("doctor")
    assert told.code == 1
    assert "!! compression: BEGAT_COMPRESSION is 'gzip'" in told.out
    monkeypatch.delenv("BEGAT_COMPRESSION")
    Path("file").touch()
    monkeypatch.setenv("BEGAT_CACHE", "file")
    told = begat("doctor")
    assert told.code == 1
    assert "!! cache is a folder: remove that file, or set BEGAT_CACHE" in told.out


def test_doctor_sees_what_a_killed_process_left(data: Path) -> None:
    code = (
        "import os, begat\n"
        "from begat.recording.staging import STAGING, Journal\n"
        "from begat.identity import new_uid\n"
        "from begat.listing import Data, Planned\n"
        "store = begat.open_store()\n"
        "journal = Journal.begin(store.path / STAGING)\n"
        "labels = dict(type=None, metadata={}, aliases=(), run=None)\n"
        "plan = [Planned('a.txt', Data(b'late'))]\n"
        "journal.stage('late', plan, token=new_uid(), may_link=False, **labels)\n"
        "os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert killed.returncode == 9
    told = begat("doctor")
    assert told.code == 1
    assert "!! journal: 'begat sync'" in told.out
    assert done("sync").out == "stored late:v1\n"
    assert done("doctor").code == 0


# --- progress ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_work_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.shown(quiet=False), reporting("storing x", 2_000_000, total_files=4) as told:
        told.advance(bytes=1_000_000, files=2)
    assert "storing x" in terminal.getvalue()
    assert "1.0/2.0 MB" in terminal.getvalue()
    assert "2/4 files" in terminal.getvalue()


def test_short_work_quiet_work_and_work_without_a_terminal_show_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for silent_s, quiet, stream in (
        (60.0, False, Terminal()),
        (0.0, True, Terminal()),
        (0.0, False, io.StringIO()),
    ):
        monkeypatch.setattr(progress, "SILENT_S", silent_s)
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.shown(quiet=quiet), reporting("storing x", 2_000_000) as told:
            told.advance(bytes=1_000_000)
        assert stream.getvalue() == ""


# --- the command as a process ---


def test_a_reader_that_goes_away_is_no_failure_worth_a_word(tmp_path: Path) -> None:
    for at in range(3_000):
        (tmp_path / f"{at:04}-{'x' * 60}").touch()
    done("log", "many", tmp_path)
    lister = subprocess.Popen(
        [*COMMAND, "ls", "many:v1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert lister.stdout is not None
    assert lister.stderr is not None
    lister.stdout.readline()
    lister.stdout.close()
    assert lister.stderr.read() == b""
    lister.stderr.close()
    assert lister.wait(60) == BROKEN_PIPE


def test_help_loads_neither_the_store_nor_a_database() -> None:
    code = (
        "import sys, begat.cli; code = begat.cli.main(['--help'])\n"
        "heavy = {'sqlalchemy', 'sqlite3', 'zstandard', 'begat.store', 'begat.drawing'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or code)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


def test_a_terminal_that_cannot_show_a_name_is_no_failure(data: Path) -> None:
    Path("data/größe.txt").write_text("x")
    done("log", "digits", "data")
    told = subprocess.run(
        [*COMMAND, "ls", "digits:v2"],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"gr\\xf6\\xdfe.txt" in told.stdout
