"""Long work tells whoever listens how far it is."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import begat
from begat.blobs import BlobWriter
from begat.progress import SILENT, Portion, current, reporting, using


class Heard:
    """Writes down what it is told, and trips over itself if two threads tell it at once."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.bytes = 0
        self.files = 0
        self.steps = 0

    def start(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        self.said.append(("start", what, total_bytes, total_files))

    def advance(self, bytes: int = 0, files: int = 0) -> None:
        before = self.bytes
        threading.Event().wait(0.0001)  # lets another thread in, if it may come in
        self.bytes = before + bytes
        self.files += files
        self.steps += bool(bytes)

    def finish(self) -> None:
        self.said.append("finish")


def test_nobody_listens_unless_asked() -> None:
    assert current() is SILENT
    with reporting("work") as progress:
        progress.advance(bytes=1, files=1)
    assert current() is SILENT


def test_work_reports_to_the_listener_of_its_context() -> None:
    heard = Heard()
    with using(heard), reporting("storing digits", 10, total_files=2) as progress:
        progress.advance(bytes=4)
        current().advance(bytes=6, files=2)
    assert heard.said == [("start", "storing digits", 10, 2), "finish"]
    assert heard.bytes == 10
    assert current() is SILENT


def test_work_that_fails_is_finished_too() -> None:
    heard = Heard()
    with using(heard), pytest.raises(ZeroDivisionError), reporting("work"):
        raise ZeroDivisionError
    assert heard.said[-1] == "finish"


def test_work_inside_other_work_neither_starts_nor_finishes() -> None:
    heard = Heard()
    with using(heard), reporting("outer"), reporting("inner", 5) as inner:
        inner.advance(bytes=5)
    assert heard.said == [("start", "outer", None, None), "finish"]
    assert heard.bytes == 5


def test_two_works_after_each_other_both_start() -> None:
    heard = Heard()
    with using(heard):
        with reporting("one"):
            pass
        with reporting("two"):
            pass
    assert [said[1] for said in heard.said if isinstance(said, tuple)] == ["one", "two"]


def test_steps_of_many_threads_are_told_one_at_a_time() -> None:
    heard = Heard()
    with using(heard), reporting("work") as progress:

        def work() -> None:
            for _ in range(50):
                progress.advance(bytes=1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard.bytes == 200


def test_a_new_thread_hears_nothing_of_the_listener_by_itself() -> None:
    seen: list[object] = []
    with using(Heard()):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [SILENT]


def test_log_get_verify_and_gc_all_tell_of_every_byte_and_file(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    for name, size in (("large.bin", 3_000_000), ("small.bin", 1000), ("empty", 0)):
        (source / name).write_bytes(os.urandom(size))
    told: list[Heard] = []

    def heard() -> Heard:
        told.append(Heard())
        return told[-1]

    with begat.open_store(tmp_path / "store") as store:
        with using(heard()):
            version = store.log_artifact("digits", source)
        with using(heard()):
            version.download(tmp_path / "copy")
        with using(heard()):
            store.verify()
        version.delete()
        with using(heard()):
            freed = store.gc(dry_run=False).freed_bytes
    log, get, verify, gc = told
    assert log.said == [("start", "logging digits", 3_001_000, 3), "finish"]
    assert get.said == [("start", "getting digits:v1", 3_001_000, 3), "finish"]
    assert [(one.bytes, one.files) for one in (log, get)] == [(3_001_000, 3)] * 2
    assert verify.bytes > 3_001_000  # the manifest too; objects are counted
    assert gc.bytes == freed > 3_001_000
    assert all(len(one.said) == 2 and one.said[1] == "finish" for one in told)


@pytest.mark.parametrize(
    "compression", ["off", "auto"]
)  # as it is; in parts, of which each is told
def test_a_large_file_is_told_of_while_it_is_stored_and_read(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEGAT_COMPRESSION", compression)
    size_bytes = 40 << 20
    path = tmp_path / "large.txt"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(6_000_000))[:size_bytes])
    with begat.open_store(tmp_path / "store") as store:
        for work in (
            lambda: store.log_artifact("large", path),
            lambda: store.log_artifact(
                "large", path, stat_cache=False
            ),  # compared with what is there
            lambda: store.get_artifact("large").download(tmp_path / "copy"),
        ):
            heard = Heard()
            with using(heard):
                work()
            assert (heard.bytes, heard.files) == (size_bytes, 1)
            assert heard.steps > 5
        for ref in (None, "large"):
            heard = Heard()
            with using(heard):
                assert store.verify(ref).is_sound
            assert heard.steps > 5


def test_what_is_compressed_is_half_done_when_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = 40 << 20
    path = tmp_path / "large.txt"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(6_000_000))[:size_bytes])
    heard = Heard()
    done: list[int] = []  # how many bytes were told of when a group of parts was packed
    pack = BlobWriter.pack

    def packing(writer: BlobWriter, *args: Any, **kwargs: Any) -> None:
        done.append(heard.bytes)
        pack(writer, *args, **kwargs)

    monkeypatch.setattr(BlobWriter, "pack", packing)
    with begat.open_store(tmp_path / "store") as store, using(heard):
        store.log_artifact("large", path)
    assert len(done) > 5
    assert done[0] <= size_bytes // 2 < done[-1] <= heard.bytes == size_bytes


def test_bytes_that_are_done_twice_count_once() -> None:
    heard = Heard()
    portion = Portion(heard, 10)
    portion.tell(7)
    portion.tell(7)
    portion.complete()
    assert (heard.bytes, heard.files) == (10, 1)
