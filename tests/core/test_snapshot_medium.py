"""Files of a few megabytes, several at a time: the same objects, the first error, nothing left, memory bounded."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import begat
from begat import blobs, files, pool, snapshot
from begat.blobs import BlobWriter
from begat.errors import BegatError, SourceChanged
from trees import MIB

COUNT = 24


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "THREADS_FROM_BYTES", 1)


def use_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> list[pool.Pool]:
    """So many beside the caller's own; the pools that were made of them."""
    made: list[pool.Pool] = []

    def make() -> pool.Pool:
        made.append(pool.Pool(count))
        return made[-1]

    monkeypatch.setattr(snapshot, "Pool", make)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise, text, a file twice, one that has few new parts, and small files in between."""
    root = tmp_path / "data"
    root.mkdir()
    dice = random.Random(5)
    noise = b""
    for number in range(COUNT):
        size = dice.randrange(MIB, 3 * MIB)
        if number % 6 == 1:
            data = b"".join(b"%d and %d\n" % (number, line) for line in range(size // 12))
        elif number % 6 == 2:
            data = noise  # that of the file before the text
        elif number % 6 == 3:
            data = noise[: 7 * len(noise) // 8] + dice.randbytes(size // 8)
        else:
            data = noise = dice.randbytes(size)
        (root / f"{number:02}.bin").write_bytes(data)
        if number % 3 == 0:
            (root / f"{number:02}.small").write_bytes(dice.randbytes(20_000))
    return root


def files_below(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.is_file()]


def assert_nothing_was_published(store: begat.Store) -> None:
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []
    assert files_below(store.path / "objects") == []
    # The heartbeat of a run of another test may be there; none of those that read and write.
    names = [each.name for each in threading.enumerate()]
    assert not {"begat", "begat-pool"}.intersection(names)


def test_objects_and_packs_are_the_same_with_any_number_of_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, list[Any]]] = []
    for count in (0, 1, 3):
        use_threads(monkeypatch, count)
        with begat.open_store(tmp_path / f"store-{count}") as store:
            version = store.log_artifact("x", folder)
            lying: list[Any] = []
            for name, _ in store.objects.list():
                # The pack that holds the record has times and ids in it.
                in_one = [(b.digest, b.kind, b.offset, b.stored_length, b.codec)
                          for b in store.catalog.bytes.blobs_in(name)
                          if b.kind in ("file", "part", "recipe")]  # fmt: skip
                lying.append(in_one)
            found.append((version.digest, sorted(lying)))
            for path in folder.iterdir():
                assert version.read_bytes(path.name) == path.read_bytes()
            assert store.verify().is_sound
    assert found[0] == found[1] == found[2]
    kinds = {kind for each in found for lying in each[1] for _, kind, *_ in lying}
    assert kinds == {"file", "part", "recipe"}


def test_of_several_files_at_once_the_first_that_fails_in_the_order_of_paths_is_told(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, 3)
    open_source = snapshot.open_source
    has_failed = threading.Event()

    def failing(path: str) -> int:
        if path.endswith("05.bin"):
            has_failed.set()
            raise OSError(5, "Input/output error", path)
        if path.endswith("04.bin"):
            assert has_failed.wait(60)  # it can only be seen to fail if both are open at once
            raise PermissionError(13, "Permission denied", path)
        return open_source(path)

    monkeypatch.setattr(snapshot, "open_source", failing)
    with pytest.raises(BegatError, match=r"04\.bin"):
        store.log_artifact("x", folder)
    monkeypatch.undo()
    assert_nothing_was_published(store)
    assert store.log_artifact("x", folder).number == 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_interrupt_stops_those_that_are_being_read(
    count: int, store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = use_threads(monkeypatch, count)
    read_at, add_cut = files.read_at, BlobWriter.add_cut
    stored: list[str] = []
    is_reading = threading.Event()
    stopped: set[int] = set()  # threads that were told in the middle of a file
    too_late: list[int] = []

    def reading(fd: int, buffer: memoryview, offset: int) -> int:
        if threading.get_ident() in stopped:
            too_late.append(offset)
        elif stored and threading.current_thread().name == "begat-pool":
            stopped.add(threading.get_ident())
            is_reading.set()
            while not made[0].is_stopping:
                time.sleep(0.001)
        return read_at(fd, buffer, offset)

    def storing(writer: BlobWriter, read: blobs.CutFile) -> tuple[str, ...]:
        if stored:
            assert not count or is_reading.wait(60)
            raise KeyboardInterrupt
        needs = add_cut(writer, read)
        stored.append(read.file.name)
        return needs

    monkeypatch.setattr(files, "read_at", reading)
    monkeypatch.setattr(BlobWriter, "add_cut", storing)
    with pytest.raises(KeyboardInterrupt):
        store.log_artifact("x", folder)
    monkeypatch.undo()
    assert stored == ["00.bin"]
    assert too_late == []
    assert_nothing_was_published(store)


def test_all_files_pass_through_the_memory_of_a_few(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, 3)
    cut = BlobWriter.cut
    buffers: dict[int, object] = {}

    def cutting(writer: BlobWriter, memory: memoryview, *named: str) -> blobs.CutFile:
        buffers[id(memory.obj)] = memory.obj  # kept, so that no other has its id
        return cut(writer, memory, *named)

    monkeypatch.setattr(BlobWriter, "cut", cutting)
    store.log_artifact("x", folder)
    # Those to be read, the one that is stored, and those to be packed.
    assert 1 < len(buffers) <= 4 + 1 + 3 < COUNT


def test_the_largest_is_read_into_memory_and_one_that_is_larger_is_not(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(path.stat().st_size for path in folder.iterdir())
    (folder / "larger").write_bytes(random.Random(2).randbytes(largest + 1))
    monkeypatch.setattr(snapshot, "MEDIUM_FILE_BYTES", largest)
    add_file, by_itself = BlobWriter.add_file, list[str]()

    def adding(writer: BlobWriter, fd: int, size: int, name: str, **how: Any) -> Any:
        by_itself.append(name)
        return add_file(writer, fd, size, name, **how)

    monkeypatch.setattr(BlobWriter, "add_file", adding)
    version = store.log_artifact("x", folder)
    assert by_itself == ["larger"]
    for path in folder.iterdir():
        assert version.read_bytes(path.name) == path.read_bytes()


# --- where the file system lets two files share their blocks ---


def sharing(monkeypatch: pytest.MonkeyPatch, *, spoil: Path | None = None) -> list[int]:
    """As on XFS: our copy has what the file has at that moment. How often it was asked for."""
    asked: list[int] = []

    def share(source: int, target: int) -> bool:
        if spoil is not None:
            with spoil.open("r+b") as file:
                file.write(b"changed")
        os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
        asked.append(target)
        return True

    monkeypatch.setattr(files, "share_blocks", share)
    return asked


def test_blocks_are_shared_instead_of_written(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(2 * MIB))
    asked = sharing(monkeypatch)
    written: list[int] = []
    monkeypatch.setattr(files, "write_at", lambda *given: written.append(len(given[1])))
    version = store.log_artifact("x", path)
    assert (len(asked), written) == (1, [])
    assert version.read_bytes("file") == path.read_bytes()
    assert store.verify().is_sound


def test_what_is_shared_must_be_what_was_hashed(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(2 * MIB))
    sharing(monkeypatch, spoil=path)
    with pytest.raises(SourceChanged, match="file changed while it was read"):
        store.log_artifact("x", path)
    monkeypatch.undo()
    assert_nothing_was_published(store)
