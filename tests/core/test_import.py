"""`import begat` is quick, and brings in nothing that is not used yet."""

import subprocess
import sys
from pathlib import Path

import pytest

import begat

# Imported where they are used, and not before.
LATER = {
    *("alembic", "obstore", "psycopg", "rich", "sqlalchemy", "typer"),
    *(
        "datasets",
        "huggingface_hub",
        "jax",
        "keras",
        "lightning",
        "mlflow",
        "numpy",
        "pandas",
        "pyarrow",
    ),
    *("pytorch_lightning", "skops", "sklearn", "tensorflow", "torch", "transformers"),
}
# Parts of begat, and of Python, that neither a log nor a look into the store needs.
NOT_TO_LOG = {
    *("begat.checkout", "begat.diff", "begat.drawing", "begat.fingerprints", "begat.ignore"),
    *("begat.lineage", "begat.walk"),
    *("begat.rebuild", "begat.remote", "begat.stale", "begat.sweep", "begat.tables.migrations"),
    *("begat.verify", "html"),
}
MOST_SECONDS = 0.100


def in_a_new_python(code: str) -> str:
    """What the code prints in a process that finds begat where this one found it."""
    prelude = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_begat_takes_less_than_a_tenth_of_a_second() -> None:
    # The quickest of several, because a busy machine only ever adds; the first also compiles.
    clock = (
        "import time; start = time.perf_counter(); import begat; print(time.perf_counter() - start)"
    )
    quickest = min(float(in_a_new_python(clock)) for _ in range(7))
    assert quickest < MOST_SECONDS


def test_importing_begat_imports_nothing_heavy() -> None:
    listing = "import begat; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    imported = set(in_a_new_python(listing).split())
    assert "begat" in imported
    assert not imported & LATER


LOG = """
import begat
with begat.open_store("store") as store, store.start_run("x") as run:
    run.log_artifact("a", b"1")
"""
LS = "from begat.cli import main; assert main(['--store', 'store', 'ls']) == 0"


@pytest.mark.parametrize(
    ("code", "needed"),
    [(LOG, {"sqlalchemy"}), (LS, {"sqlalchemy", "typer"})],
    ids=["log", "ls"],
)
def test_a_log_and_a_look_load_only_what_they_need(
    code: str, needed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    in_a_new_python(LOG)  # there is a store, as for all logs but the first
    listing = "\nprint(*sys.modules)"
    imported = set(in_a_new_python(code + listing).splitlines()[-1].split())
    assert needed <= imported
    assert not imported & (LATER - needed | NOT_TO_LOG)


def test_a_log_makes_no_dataclass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python writes the methods of each anew in every process, 0.5 ms a class; a msgspec.Struct takes 15 µs.
    monkeypatch.chdir(tmp_path)
    listing = """
import sys
print(*sorted({f"{kind.__module__}.{kind.__qualname__}" for name, module in list(sys.modules.items())
               if name.startswith("begat") for kind in vars(module).values()
               if isinstance(kind, type) and "__dataclass_fields__" in vars(kind)
               and kind.__module__.startswith("begat")}))
"""
    assert in_a_new_python(LOG + listing).split() == []


def test_all_is_sorted_and_complete_and_every_name_in_it_can_be_imported() -> None:
    # In a new process: in this one, modules that other tests imported are names of the package too.
    eager = """
import begat
from begat import _HOMES
own = [name for name, value in vars(begat).items() if not name.startswith("_")
       and (getattr(value, "__module__", None) or getattr(value, "__name__", "")).startswith("begat")]
print(*sorted({*own, *_HOMES, "__version__"}))
"""
    assert in_a_new_python(eager).split() == begat.__all__
    assert sorted(set(begat.__all__)) == begat.__all__
    missing = "import begat; print([n for n in begat.__all__ if getattr(begat, n, None) is None])"
    assert in_a_new_python(missing).strip() == "[]"
    starred = "from begat import *; import begat; print(set(begat.__all__) - set(globals()))"
    assert in_a_new_python(starred).strip() == "set()"
