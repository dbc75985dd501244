"""A recorder keeps what a training saves, whatever happens to the files, the process and the store meanwhile."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import begat
from begat import Recorder, files
from begat.errors import (
    ArtifactNotFound,
    BadPath,
    BadReference,
    BegatWarning,
    CatalogBusy,
    StoreFull,
)
from begat.recording import shipping
from begat.recording.staging import STAGING
from begat.run import Run
from workers import asleep

CONTENT = os.urandom(2 << 20)


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def checkpoint(name: str = "a.ckpt", content: bytes = CONTENT) -> Path:
    path = Path(name)
    path.write_bytes(content)
    return path


def attach(**options: Any) -> Recorder:
    return Recorder.attach(**{"name": "net", "job": "train", **options})


# --- checkpoints ---


def test_what_was_saved_may_be_removed_at_once(store: begat.Store) -> None:
    recorder = attach()
    recorder.saved(path := checkpoint())
    path.unlink()
    recorder.finish()
    assert store.get_artifact("net").read_bytes("a.ckpt") == CONTENT


@pytest.mark.parametrize("is_replaced_whole", [False, True])
def test_the_users_file_keeps_its_mode_and_its_bytes(
    store: begat.Store, is_replaced_whole: bool
) -> None:
    recorder = attach()
    path = checkpoint()
    path.chmod(0o640)
    recorder.saved(path, is_replaced_whole=is_replaced_whole)
    recorder.finish()
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_bytes(b"x" * len(CONTENT))
    assert store.get_artifact("net").read_bytes("a.ckpt") == CONTENT
    assert path.stat().st_nlink == 1


def test_what_was_copied_into_staging_is_not_copied_again(store: begat.Store) -> None:
    operations: list[tuple[str, str]] = []
    files.fault = lambda operation, path: operations.append((operation, path))
    try:
        recorder = attach()
        recorder.saved(checkpoint())
        recorder.finish()
    finally:
        files.fault = None
    copies = [path for operation, path in operations if operation == "copy"]
    assert len(copies) == 1
    assert STAGING in copies[0]


def test_a_file_that_is_replaced_whole_is_linked_and_not_copied_in_the_hook() -> None:
    recorder = attach()
    with asleep(recorder):
        recorder.saved(path := checkpoint(), is_replaced_whole=True)
        assert path.stat().st_nlink == 2
    recorder.finish()


def test_a_linked_file_that_was_written_to_in_place_is_told_as_lost(store: begat.Store) -> None:
    recorder = attach()
    with asleep(recorder):
        recorder.saved(path := checkpoint(), is_replaced_whole=True)
        with path.open("r+b") as file:
            file.write(b"torn")
        os.utime(path, ns=(1, 1))
    with pytest.warns(BegatWarning, match="in place"):
        report = recorder.finish()
    assert len(report.failed) == 1
    assert store.artifacts() == []


def test_a_folder_is_one_version_of_all_its_files(store: begat.Store) -> None:
    (folder := Path("model.ckpt")).mkdir()
    (folder / "empty").mkdir()
    (folder / "weights").write_bytes(CONTENT)
    (folder / "run.sh").write_bytes(b"#!")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("weights")
    recorder = attach()
    recorder.saved(folder)
    recorder.finish()
    got = store.get_artifact("net").download("got")
    assert sorted(path.name for path in got.iterdir()) == ["empty", "link", "run.sh", "weights"]
    assert os.readlink(got / "link") == "weights"
    assert os.access(got / "run.sh", os.X_OK)
    assert not os.access(got / "weights", os.X_OK)


def test_equal_content_at_the_same_path_is_one_version_that_stays_live(store: begat.Store) -> None:
    recorder = attach()
    for _ in range(2):
        recorder.saved(checkpoint())
    recorder.finish()
    (version,) = store.versions("net")
    assert version.state == "live"


def test_many_threads_may_save_at_once(store: begat.Store) -> None:
    recorder = attach()

    def save(number: int) -> None:
        recorder.saved(checkpoint(f"{number}.ckpt", bytes([number]) * 10_000), step=number)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.finish().shipped == 8
    assert {version.metadata["step"] for version in store.versions("net")} == set(range(8))


def test_an_infinite_score_is_kept_as_none(store: begat.Store) -> None:
    recorder = attach()
    recorder.saved(checkpoint(), score=float("inf"), monitor="loss")
    recorder.finish()
    assert store.get_artifact("net").metadata["score"] is None


def test_an_alias_moves_to_what_was_saved_before(store: begat.Store) -> None:
    recorder = attach()
    recorder.saved(first := checkpoint("a.ckpt"), aliases=["best"])
    recorder.saved(checkpoint("b.ckpt", b"b"), aliases=["best"])
    recorder.alias(first, "best")
    recorder.finish()
    assert store.get_artifact("net:best").number == 1
    assert [move.to_number for move in store.alias_history("net", "best")] == [1, 2, 1]


# --- ends ---


def test_a_run_of_the_user_is_left_open_and_drained_before_it_ends(store: begat.Store) -> None:
    with begat.start_run("mine") as run:
        attach().saved(checkpoint())
    assert [version.ref for version in run.outputs] == ["net:v1"]
    assert run.status == "finished"


def test_finishing_twice_is_finishing_once(store: begat.Store) -> None:
    recorder = attach()
    recorder.finish(error=ValueError("first"))
    recorder.finish()
    assert store.runs()[0].status == "failed"


EXITS = {
    "pass": ("finished", 0),
    "sys.exit(3)": ("finished", 3),  # Python tells nobody of it after the last line
    "raise ValueError('boom')": ("failed", 1),
}


@pytest.mark.parametrize("end", EXITS)
def test_what_waits_when_python_exits_is_stored(store: begat.Store, end: str) -> None:
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import begat
from pathlib import Path
recorder = begat.Recorder.attach(name="net")
for number in range(5):
    Path(f"{{number}}.ckpt").write_bytes(bytes([number]) * 3_000_000)
    recorder.saved(f"{{number}}.ckpt")
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    status, code_of_exit = EXITS[end]
    assert done.returncode == code_of_exit, done.stderr
    assert len(store.versions("net")) == 5
    assert store.runs()[0].status == status


def test_what_is_saved_by_an_exit_handler_is_stored(store: begat.Store) -> None:
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import atexit, begat
from pathlib import Path
recorder = begat.Recorder.attach(name="net")
Path("a.ckpt").write_bytes(b"a" * 3_000_000)
atexit.register(lambda: recorder.saved("a.ckpt"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(store.versions("net")) == 1


def test_where_no_thread_can_be_started_any_more_the_end_does_the_work_itself(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    recorder = attach()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        recorder.saved(checkpoint())
        assert recorder.finish().shipped == 1
    assert not list((store.path / STAGING).iterdir())


# --- other processes ---


def test_a_forked_child_records_nothing_and_its_parent_goes_on(store: begat.Store) -> None:
    recorder = attach()
    recorder.saved(checkpoint("a.ckpt", b"a"))
    pid = os.fork()
    if pid == 0:
        recorder.saved(checkpoint("child.ckpt", b"child"))
        recorder.removed("a.ckpt")
        recorder.finish()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    recorder.saved(checkpoint("b.ckpt", b"b"))
    recorder.finish()
    assert [v.metadata["path"] for v in store.versions("net")] == ["a.ckpt", "b.ckpt"]
    assert [v.state for v in store.versions("net")] == ["live", "live"]
    assert store.runs()[0].status == "finished"


def test_a_pickled_copy_goes_on_with_the_same_run(store: begat.Store) -> None:
    recorder = attach()
    recorder.saved(checkpoint("a.ckpt", b"a"))
    recorder.drain()
    copy = pickle.loads(pickle.dumps(recorder))
    copy.removed("a.ckpt")
    copy.saved(checkpoint("b.ckpt", b"b"))
    copy.finish()
    recorder.finish()
    assert [version.state for version in store.versions("net")] == ["retired", "live"]
    assert {version.produced_by for version in store.versions("net")} == {store.runs()[0]}


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_another_rank_records_nothing(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    recorder = attach()
    assert recorder.consume(["nothing:latest"]) == []
    recorder.saved(checkpoint())
    recorder.finish()
    assert (store.runs(), store.artifacts()) == ([], [])


# --- inputs ---


@pytest.mark.parametrize(
    ("ref", "error"), [("nothing:latest", ArtifactNotFound), ("no name", BadReference)]
)
def test_a_reference_that_cannot_be_meant_raises_and_fails_a_run_that_was_there(
    store: begat.Store, ref: str, error: type[Exception]
) -> None:
    store.log_artifact("digits", b"0123")
    with pytest.raises(error):
        attach().consume([ref])
    assert store.runs()[0].status == "failed"
    with pytest.raises(error), store.start_run("around") as run:
        attach(uses=["digits", ref])
    assert (run.status, run.edges) == ("failed", ())


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("nothing:latest", ArtifactNotFound),
        ("no name", BadReference),
        ("begat://digits:v1/../x", BadPath),
    ],
)
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_recorder_whose_inputs_cannot_be_meant_makes_no_run(
    store: begat.Store, ref: str, error: type[Exception], on_error: Any
) -> None:
    store.log_artifact("digits", b"0123")
    with pytest.raises(error):
        attach(uses=["digits", ref], on_error=on_error)
    assert store.runs() == []
    assert begat.active_run() is None


def test_a_recorder_consumes_what_it_is_attached_with(store: begat.Store) -> None:
    digits = store.log_artifact("digits", b"0123")
    recorder = attach(uses="digits")
    assert recorder.run is not None
    assert recorder.run.inputs == (digits,)
    recorder.finish()


def test_an_input_that_the_store_cannot_be_asked_for_is_marked_as_unresolved(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("digits", b"0123")
    recorder = attach()

    def busy(*args: object, **options: object) -> Any:
        raise CatalogBusy("other processes hold the catalog")

    # Not a real lock held by another process: the catalog waits a minute for those.
    with monkeypatch.context() as patch:
        patch.setattr(Run, "use_artifact", busy)
        with pytest.warns(BegatWarning, match="hold the catalog"):
            recorder.consume(["digits:latest"])
    recorder.finish()
    assert store.runs()[0].params["begat.unresolved"] == ["digits:latest"]
    assert store.runs()[0].inputs == ()


def test_a_checkpoint_that_nobody_knows_is_a_warning(store: begat.Store) -> None:
    recorder = attach()
    with pytest.warns(BegatWarning, match="lineage begins here"):
        assert recorder.resumed_from("018f0000-0000-7000-8000-000000000000") is None
    recorder.finish()


def test_work_of_an_integration_is_guarded_by_the_same_policy(store: begat.Store) -> None:
    calm = attach()
    with pytest.warns(BegatWarning, match="counting failed: too many"):
        with calm.guarded("counting"):
            raise ValueError("too many")
    calm.finish()
    strict = attach(on_error="raise")
    with pytest.raises(ValueError, match="too many"), strict.guarded("counting"):
        raise ValueError("too many")
    strict.finish()


def test_a_checkpoint_that_is_still_on_its_way_is_waited_for(store: begat.Store) -> None:
    recorder = attach()
    uid = recorder.saved(checkpoint())
    assert uid is not None
    assert recorder.resumed_from(uid) == store.get_artifact("net:v1")
    recorder.finish()


# --- what goes wrong ---


def disk_full(where: str) -> Callable[[str, str], None]:
    def fault(operation: str, path: str) -> None:
        if where in path and operation in ("create", "copy", "append", "write"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return fault


def test_a_full_disk_is_a_warning_and_leaves_no_half_file(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach()
    path = checkpoint()
    with monkeypatch.context() as patch:
        patch.setattr(files, "fault", disk_full(STAGING))
        with pytest.warns(BegatWarning, match="No space left"):
            recorder.saved(path)
    assert list((store.path / STAGING).glob("*/*/*")) == []
    recorder.saved(checkpoint("b.ckpt"))
    assert recorder.finish().shipped == 1


def test_a_full_disk_raises_where_that_is_wanted(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach(on_error="raise")
    with monkeypatch.context() as patch, pytest.raises(StoreFull):
        patch.setattr(files, "fault", disk_full(STAGING))
        recorder.saved(checkpoint())
    recorder.finish()


def test_a_store_that_is_full_for_a_while_gets_everything_in_the_end(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach()
    with monkeypatch.context() as patch:
        patch.setattr(files, "fault", disk_full(str(store.path / "tmp")))
        recorder.saved(checkpoint())
        assert len(recorder.drain().pending) == 1
        # The training's own thread hears of it with its next call.
        with pytest.warns(BegatWarning, match="waits to be stored"):
            recorder.removed("nothing")
    assert recorder.finish().shipped == 1


def test_a_file_that_is_not_there_is_a_warning() -> None:
    recorder = attach()
    with pytest.warns(BegatWarning, match="does not exist"):
        assert recorder.saved("nothing.ckpt") is None
    recorder.finish()


def test_what_would_fill_the_disk_is_not_taken_in_and_told(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach(max_pending=1)
    monkeypatch.setattr(shipping, "ROOM_WAIT_S", 0.01)
    with monkeypatch.context() as patch, asleep(recorder):
        usage = shipping.shutil.disk_usage("/")._replace(free=3 * len(CONTENT))
        patch.setattr(shipping.shutil, "disk_usage", lambda path: usage)
        recorder.saved(checkpoint("a.ckpt"))
        with pytest.warns(BegatWarning, match="not taken in"):
            recorder.saved(checkpoint("b.ckpt"))
    assert recorder.finish().shipped == 1


def test_an_id_that_would_be_another_place_is_refused(store: begat.Store) -> None:
    recorder = attach(on_error="raise")
    with pytest.raises(TypeError):
        recorder.saved(checkpoint(), uid="../../elsewhere")
    recorder.finish()


def test_a_wrong_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        attach(on_error="ignore")
    with pytest.raises(TypeError):
        attach(keep="everything")
