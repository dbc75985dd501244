"""What `begat` says when something goes wrong: every error that a command can meet, in the words of the terminal."""

import ast
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import begat as package
from begat import Artifact, Recorder, errors, open_store
from begat.cli.output import in_flags
from begat.metadata import MAX_METADATA_BYTES
from command_line import Told, begat, done

CORE = Path(package.__file__).parent
# What only Python has: a keyword argument, a call, a name of the package.
PYTHON = re.compile(
    r"\b[a-z_]+=(?:'|True|False|None|\d)|\b[a-z_.]*[a-z_]\([^)]*\)|\bbegat\.[a-z_]+\b"
)


@pytest.fixture
def data() -> Path:
    folder = Path("data")
    folder.mkdir()
    (folder / "a.csv").write_text("a\n")
    done("log", "digits", folder, "--version", "1.0.0", "--alias", "best")
    return folder


def write_anew(data: Path, text: str = "b\n") -> None:
    (data / "a.csv").write_text(text)


def version_deleted(data: Path) -> Told:
    done("rm", "digits:v1", "--force", "--yes")
    return begat("get", "digits:v1")


def bytes_retired(data: Path) -> Told:
    recorder = Recorder.attach(name="net", job="train")
    Path("a.ckpt").write_bytes(b"a")
    recorder.saved("a.ckpt", step=1)
    recorder.removed("a.ckpt")
    recorder.finish()
    done("gc", "--delete")
    return begat("get", "net:v1")


def version_exists(data: Path) -> Told:
    told = begat("log", "digits", data, "--version", "2.0.0")
    assert "--if-unchanged new" in told.err
    write_anew(data)
    told = begat("log", "digits", data, "--version", "1.0.0")
    assert "--bump minor" in told.err
    return told


def alias_reserved(data: Path) -> Told:
    told = begat("rm", "digits:v1", "--yes")
    assert "--force" in told.err
    return told


def format_too_new(data: Path) -> Told:
    file = Path(os.environ["BEGAT_STORE"]) / "format.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 999'))
    return begat("ls")


def destination_differs(data: Path) -> Told:
    done("get", "digits", "there")
    write_anew(Path("there"))
    told = begat("get", "digits", "there")
    assert "--overwrite overwrite or --overwrite preserve" in told.err
    return told


def bad_path(data: Path) -> Told:
    told = begat("get", "digits", "--include", "*.parquet")
    assert "fits '*.parquet'" in told.err
    return told


def twice_the_same_file(data: Path) -> Told:
    told = begat("log", "other", data, data / "a.csv")
    assert "--exclude" in told.err
    return told


def unsupported(data: Path) -> Told:
    os.mkfifo(data / "pipe")
    return begat("log", "digits", data)


def remote_changed(data: Path) -> Told:
    draft = Artifact("far").add_remote((data / "a.csv").absolute().as_uri())
    open_store().log_artifact(draft)
    write_anew(data, "longer than it was\n")
    return begat("get", "far", "--remote")


def object_missing(data: Path) -> Told:
    for path in (Path(os.environ["BEGAT_STORE"]) / "objects").rglob("*-*"):
        path.unlink()
    return begat("get", "digits")


def digest_mismatch(data: Path) -> Told:
    for path in (Path(os.environ["BEGAT_STORE"]) / "objects").rglob("*-*"):
        path.chmod(0o644)
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    return begat("get", "digits")


PROVOKED: dict[str, Callable[[Path], Told]] = {
    "ArtifactNotFound": lambda data: begat("show", "nothing"),
    "VersionNotFound": lambda data: begat("show", "digits:v9"),
    "VersionDeleted": version_deleted,
    "BytesRetired": bytes_retired,
    "VersionExists": version_exists,
    "AliasMoved": lambda data: begat("alias", "digits:v1", "best", "--expect", "absent"),
    "AliasReserved": alias_reserved,
    "TypeMismatch": lambda data: begat("log", "digits", data, "--type", "model"),
    "FormatTooNew": format_too_new,
    "DestinationDiffers": destination_differs,
    "BadReference": lambda data: begat("run", "--uses", "digits:v1/a.csv", "--", "true"),
    "AmbiguousReference": lambda data: (
        begat("run", "--name", "n", "true"),
        begat("run", "--name", "n", "true"),
        begat("show", "n"),
    )[-1],
    "BadName": lambda data: begat("log", "no name", data),
    "BadPath": bad_path,
    "BadPath, twice the same": twice_the_same_file,
    "BadMetadata": lambda data: begat(
        "log", "digits", data, "--meta", "a=" + "[" * 150 + "]" * 150
    ),
    "BadInput": lambda data: begat("cache", "prune", "--to", "much"),
    "UnsupportedFile": unsupported,
    "RemoteChanged": remote_changed,
    "LimitExceeded": lambda data: begat(
        "log", "digits", data, "--meta", "a=" + "x" * (MAX_METADATA_BYTES + 1)
    ),
    "ObjectMissing": object_missing,
    "DigestMismatch": digest_mismatch,
    "StoreUnavailable": lambda data: begat("--store", "nowhere", "ls"),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_an_error_is_told_in_the_words_of_the_terminal(
    data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Exception] = []
    monkeypatch.setattr("begat.cli._show_traceback", lambda settings: raised.append(_current()))
    told = PROVOKED[name](data)
    assert told.code == 1
    assert type(raised[-1]) is getattr(errors, name.partition(",")[0])
    [line] = told.err.splitlines()
    assert line.startswith("begat: ")
    assert not PYTHON.search(line.replace(str(Path.cwd().parent), "")), line


def _current() -> Exception:
    error = sys.exc_info()[1]
    assert isinstance(error, Exception)
    return error


# --- what no test above meets ---

# Modules whose messages only Python code can meet, each with the reason.
OF_PYTHON_ONLY = {
    "run.py": "the run of a rank, and params after the end",
    "remote/__init__.py": "remote assets are added from Python",
    "testing/__init__.py": "the conformance suite is imported by tests",
    "catalog/opening.py:in Python: begat.open_store": "there is no flag for it, and it says so",
}


def messages() -> list[tuple[str, str]]:
    """Every text that core gives to an error or a warning: its module, and its words with `{}` for values."""
    found: list[tuple[str, str]] = []
    names = {*errors.__all__, "_bad", "_missing", "warn", "_warn"}
    for path in sorted(CORE.rglob("*.py")):
        module = str(path.relative_to(CORE))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = (
                node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            )
            if called in names:
                texts = [
                    argument
                    for argument in node.args
                    if isinstance(argument, ast.JoinedStr | ast.Constant)
                ]
                found += [(module, _words(text)) for text in texts]
    return found


def _words(text: ast.expr) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def test_no_message_that_a_command_can_show_speaks_python() -> None:
    told = messages()
    assert len(told) > 200
    met: set[str] = set()
    for module, text in told:
        said = in_flags(text.replace("{}", "x"))
        hit = PYTHON.search(said)
        if hit is None:
            continue
        known = [
            key
            for key in OF_PYTHON_ONLY
            if module == key.partition(":")[0] and key.partition(":")[2] in text
        ]
        assert known, f"{module}: {hit[0]!r} in {said!r}"
        met |= set(known)
    assert met == set(OF_PYTHON_ONLY)
