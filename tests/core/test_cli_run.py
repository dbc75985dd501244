"""`begat run`: exit codes, signals, streams, and what the run and its children record."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from begat import open_store
from command_line import COMMAND, begat, done, environment

PATIENCE_S = 60


def the_run() -> dict[str, Any]:
    [run] = done("runs", "--json").json
    return done("show", run["id"], "--json").json


def run(*command: str, options: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, "run", *options, "--", *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE_S,
        **more,
    )


def started(*command: str, options: Sequence[str] = (), **more: Any) -> subprocess.Popen:
    """`begat run` of a shell command that makes the file `ready` when it is there; it is when this returns."""
    process = subprocess.Popen(
        [*COMMAND, "run", *options, "--", *command],
        env=environment(),
        stderr=subprocess.DEVNULL,
        **more,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not Path("ready").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


# --- exit codes and streams ---


def test_the_exit_code_is_the_programs() -> None:
    assert begat("run", "--", "true").code == 0
    told = begat("run", "--", "sh", "-c", "exit 7")
    assert told.code == 7
    [failed, finished] = done("runs", "--json").json
    assert (finished["status"], failed["status"]) == ("finished", "failed")
    assert failed["error"]["message"] == "sh exited with 7"


def test_stdin_stdout_and_stderr_are_the_programs() -> None:
    told = run("sh", "-c", "cat; echo to stderr >&2", input="from stdin\n")
    assert told.stdout == "from stdin\n"
    assert told.stderr.startswith("to stderr\n")
    assert "is finished" in told.stderr
    told = run("sh", "-c", "echo out; echo err >&2", options=["--quiet"])
    assert (told.stdout, told.stderr) == ("out\n", "err\n")


def test_with_json_stdout_is_json_alone() -> None:
    told = run("sh", "-c", "echo out; exit 3", options=["--json"])
    assert told.returncode == 3
    facts = json.loads(told.stdout)
    assert (facts["status"], facts["exit_code"]) == ("failed", 3)
    assert told.stderr == "out\n"


def test_a_program_that_does_not_exist_is_127_and_one_that_cannot_run_126() -> None:
    told = begat("run", "--", "no-such-program", "--flag")
    assert told.code == 127
    assert "no-such-program: No such file or directory" in told.err
    Path("data.txt").write_text("no program")
    assert begat("run", "--", "./data.txt").code == 126
    assert [one["status"] for one in done("runs", "--json").json] == ["failed", "failed"]


def test_a_program_that_is_killed_is_128_and_the_signal() -> None:
    assert run("sh", "-c", "kill -9 $$").returncode == 137
    told = the_run()
    assert told["status"] == "failed"
    assert told["error"]["message"] == "sh was ended by SIGKILL"


def test_the_options_of_the_program_are_its_own() -> None:
    told = run("echo", "--help", "--json", "-q")
    assert told.stdout == "--help --json -q\n"
    without_dashes = subprocess.run(
        [*COMMAND, "run", "--job", "x", "echo", "--json", "--", "-q"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE_S,
    )
    assert without_dashes.stdout == "--json -- -q\n"


# --- signals ---


def test_ctrl_c_ends_the_program_and_the_run_is_interrupted() -> None:
    process = started("sh", "-c", "touch ready; exec sleep 60")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    told = the_run()
    assert told["status"] == "interrupted"
    assert told["ended_at"] is not None


def test_a_program_that_ends_well_after_ctrl_c_has_finished() -> None:
    code = (
        "import pathlib, time\n"
        "try:\n"
        "    pathlib.Path('ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    pathlib.Path('saved').write_text('enough')\n"
    )
    process = started(*python(code), options=["--out", "model=saved"])
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    told = the_run()
    assert (told["status"], told["outputs"]) == ("finished", ["model:v1"])


def test_a_program_that_fails_after_ctrl_c_was_interrupted() -> None:
    code = (
        "import pathlib, time, sys\n"
        "try:\n"
        "    pathlib.Path('ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(5)\n"
    )
    process = started(*python(code))
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 5
    assert the_run()["status"] == "interrupted"


def test_sigterm_is_passed_on_and_the_run_has_failed() -> None:
    process = started("sh", "-c", "touch ready; exec sleep 60")
    process.terminate()
    assert process.wait(PATIENCE_S) == 143
    told = the_run()
    assert (told["status"], told["error"]["message"]) == ("failed", "sh was ended by SIGTERM")


def test_a_ctrl_c_at_the_terminal_reaches_the_program_once() -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "pathlib.Path('ready').touch()\n"
        "deadline = time.monotonic() + 50\n"
        "while not seen and time.monotonic() < deadline: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "pathlib.Path('seen').write_text(str(len(seen)))\n"
        "sys.exit(4)\n"
    )
    terminal, inside = pty.openpty()
    try:
        process = started(
            *python(code),
            stdin=inside,
            stdout=inside,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.write(terminal, b"\x03")
        assert process.wait(PATIENCE_S) == 4
    finally:
        os.close(terminal)
        os.close(inside)
    assert Path("seen").read_text() == "1"
    assert the_run()["status"] == "interrupted"


def test_a_begat_run_that_is_killed_leaves_a_lost_run() -> None:
    process = started("sh", "-c", "echo $$ > pid; touch ready; exec sleep 60")
    process.kill()
    process.wait(PATIENCE_S)
    os.kill(int(Path("pid").read_text()), signal.SIGKILL)
    assert [one["status"] for one in done("runs", "--status", "lost", "--json").json] == ["lost"]
    assert done("runs", "--status", "running", "--json").json == []


# --- what is recorded ---


def test_inputs_params_and_the_wrapped_command_are_recorded() -> None:
    Path("data.csv").write_text("a\n")
    done("log", "digits", "data.csv")
    options = ["--uses", "digits:latest", "--param", "lr=0.1", "--param", "net=small"]
    done("run", "--job", "train", "--tag", "night", *options, "--", "sh", "-c", ":", "--token=abc")
    told = the_run()
    assert told["command"]["argv"] == ["sh", "-c", ":", "--token=***"]
    assert (told["job"], told["tags"]) == ("train", ["night"])
    assert told["params"] == {"lr": 0.1, "net": "small"}
    [edge] = told["edges"]
    assert (edge["kind"], edge["ref"], edge["requested"]) == ("used", "digits:v1", "digits:latest")


def test_a_missing_input_keeps_the_program_from_starting() -> None:
    done("init")
    told = begat("run", "--uses", "nothing:latest", "--", "touch", "hacked")
    assert told.code == 1
    assert "nothing" in told.err
    assert not Path("hacked").exists()
    assert done("runs", "--json").json == []


def test_outputs_are_logged_when_the_program_ends_well() -> None:
    options = ["--out", "model:model=out", "--out", "report=report.txt"]
    script = "mkdir out; echo w > out/weights; echo r > report.txt"
    told = done("run", *options, "--", "sh", "-c", script)
    assert "model:v1 is new" in told.err
    assert the_run()["outputs"] == ["model:v1", "report:v1"]
    assert done("show", "model", "--json").json["type"] == "model"


def test_outputs_of_a_program_that_failed_are_not_logged() -> None:
    assert begat("run", "--out", "model=out", "--", "sh", "-c", "mkdir out; exit 1").code == 1
    assert done("ls", "--json").json == []


def test_an_output_that_is_not_there_fails_the_run() -> None:
    told = begat("run", "--out", "model=nowhere", "--", "true")
    assert told.code == 1
    assert "nowhere" in told.err
    assert the_run()["status"] == "failed"


def test_a_program_that_uses_begat_takes_part_in_the_run(
    monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    # The program is in another folder, and nothing but begat run tells it which store is meant.
    monkeypatch.delenv("BEGAT_STORE")
    done("--store", "here", "init")
    code = (
        "import os, begat; os.chdir('/')\n"
        "with begat.start_run('inner') as run:\n"
        "    run.log_artifact('model', b'weights')\n"
        "    run.log_params({'lr': 1})\n"
    )
    told = subprocess.run(
        [*COMMAND, "--store", "here", "run", "--name", "outer", "--", *python(code)],
        env=environment(),
        timeout=PATIENCE_S,
        capture_output=True,
    )
    assert told.returncode == 0, told.stderr
    [run] = open_store("here").runs()
    assert (run.name, run.status, dict(run.params)) == ("outer", "finished", {"lr": 1})
    assert [version.ref for version in run.outputs] == ["model:v1"]


def test_begat_commands_in_a_script_take_part_in_the_run() -> None:
    Path("data.csv").write_text("a\n")
    done("log", "digits", "data.csv")
    here = " ".join(COMMAND)
    script = (
        f"set -e; {here} get digits got; cp got/data.csv other.csv; echo b >> other.csv\n"
        f"{here} log digits-more other.csv\n"
    )
    told = run("sh", "-c", script)
    assert told.returncode == 0, told.stderr
    run_facts = the_run()
    assert (run_facts["inputs"], run_facts["outputs"]) == (["digits:v1"], ["digits-more:v1"])


def test_within_a_run_get_means_the_version_that_the_run_uses() -> None:
    Path("data.csv").write_text("a\n")
    done("log", "digits", "data.csv")
    here = " ".join(COMMAND)
    # Somebody else logs a newer version while the script runs.
    script = f"echo b > data.csv; BEGAT_RUN_ID= {here} log digits data.csv; {here} get digits got"
    told = run("sh", "-c", script, options=["--uses", "digits:latest"])
    assert told.returncode == 0, told.stderr
    assert Path("got/data.csv").read_text() == "a\n"
    assert the_run()["inputs"] == ["digits:v1"]


def test_get_of_one_file_records_the_use_of_its_version() -> None:
    Path("data.csv").write_text("a\n")
    done("log", "digits", "data.csv")
    here = " ".join(COMMAND)
    told = run("sh", "-c", f"{here} get begat://digits:v1/data.csv got.csv")
    assert told.returncode == 0, told.stderr
    assert Path("got.csv").read_text() == "a\n"
    assert the_run()["inputs"] == ["digits:v1"]


def test_outside_a_run_get_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data.csv").write_text("a\n")
    done("log", "digits", "data.csv")
    with open_store().start_run("over") as over:
        pass
    monkeypatch.setenv("BEGAT_RUN_ID", over.id)  # the run has ended
    done("get", "digits", "got")
    monkeypatch.setenv("BEGAT_RUN_ID", "01a20926-0000-7000-8000-000000000000")  # of another store
    done("get", "digits", "again")
    assert done("show", "digits", "--json").json["consumed_by"] == []
