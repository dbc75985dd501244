"""A recorder knows data that begat handed out: the run has used that very version, and a wrong declaration is told."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import begat
from begat import Recorder, handed_out
from begat.errors import BegatWarning, StoreUnavailable
from begat.model import Edge
from begat.rebuild import rebuild_store
from begat.recording import observing
from command_line import done


class Images:
    """A dataset as most are written: it keeps where its files are."""

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an item of the dataset was asked for")


class Loader:
    """A loader, or a part of a dataset: it holds the dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the loader was iterated")


class Several:
    def __init__(self, *datasets: Any) -> None:
        self.datasets = list(datasets)


_attached: list[Recorder] = []


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Nothing was handed out before the test, and no run of it stays open."""
    before = dict(handed_out._given)
    handed_out._given.clear()
    yield
    while _attached:
        _attached.pop().finish()
    handed_out._given.clear()
    handed_out._given.update(before)


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


@pytest.fixture
def first(store: begat.Store) -> begat.Version:
    return _digits(store, 1)


@pytest.fixture
def second(store: begat.Store, first: begat.Version) -> begat.Version:
    return _digits(store, 2)


def _digits(store: begat.Store, content: int, name: str = "digits") -> begat.Version:
    folder = Path(f"data-{content}")
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "train" / "0.png").write_bytes(f"zero of {content}".encode())
    (folder / "labels.csv").write_text(f"0,{content}")
    return store.log_artifact(name, folder, type="dataset")


def attach(*uses: str | begat.Version, **options: Any) -> Recorder:
    recorder = Recorder.attach(**{"name": "net", "job": "train", **options})
    _attached.append(recorder)
    recorder.consume(uses)
    return recorder


def edges(recorder: Recorder) -> dict[str, Edge]:
    """Version of an edge -> edge, of the recorder's run."""
    assert recorder.run is not None
    found = {edge.version_uid: edge for edge in recorder.run.edges}
    return {recorder.store.catalog.versions.get(uid).ref: edge for uid, edge in found.items()}


def observed(recorder: Recorder, data: Any) -> tuple[tuple[str, ...], list[str]]:
    """What was detected, and what was warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refs = recorder.observe(data)
    return refs, [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]


# --- what was declared is what is read ---


def test_data_of_the_declared_version_marks_its_edge_and_warns_of_nothing(
    first: begat.Version,
) -> None:
    recorder = attach("digits:latest")
    assert observed(recorder, Loader(Images(first.path / "train"))) == (("digits:v1",), [])
    (edge,) = edges(recorder).values()
    assert (edge.is_declared, edge.is_detected, edge.mismatch) == (True, True, None)
    assert (edge.requested, edge.role) == ("digits:latest", "train")


def test_data_that_was_downloaded_is_known(first: begat.Version) -> None:
    recorder = attach("digits:v1")
    assert recorder.observe(Images(str(first.download("mine")))) == ("digits:v1",)
    assert recorder.observe("mine/train/0.png") == ("digits:v1",)


def test_what_else_lies_in_a_download_folder_is_not_taken_for_the_version(
    first: begat.Version,
) -> None:
    first.download("mine")
    Path("mine/other").mkdir()
    assert attach().observe(Images("mine/other")) == ()


def test_the_newest_version_that_was_downloaded_to_a_folder_is_the_one_there(
    first: begat.Version, second: begat.Version
) -> None:
    first.download("mine")
    second.download("mine", overwrite="overwrite")
    assert attach().observe("mine") == ("digits:v2",)


def test_a_link_to_a_folder_that_was_handed_out_is_followed(first: begat.Version) -> None:
    Path("link").symlink_to(first.path)
    assert attach().observe(Images("link")) == ("digits:v1",)


def test_a_version_itself_tells_what_it_is(first: begat.Version) -> None:
    assert attach().observe({"data": first}) == ("digits:v1",)


def test_a_used_version_of_the_same_content_counts_as_the_declared_one(
    store: begat.Store, first: begat.Version
) -> None:
    same = _digits(store, 1, "copy")
    recorder = attach("digits:v1")
    assert observed(recorder, Images(same.path)) == (("digits:v1",), [])
    assert list(edges(recorder)) == ["digits:v1"]


def test_observing_twice_records_once(first: begat.Version) -> None:
    recorder = attach()
    data = Images(first.path)
    assert recorder.observe([data, Images(first.path)]) == recorder.observe(data) == ("digits:v1",)
    assert len(edges(recorder)) == 1


# --- what was declared is not what is read ---


def test_data_of_another_version_than_declared_is_warned_of_once_and_recorded(
    first: begat.Version, second: begat.Version
) -> None:
    recorder = attach("digits:latest")
    assert recorder.run is not None
    refs, said = observed(recorder, Images(first.path))
    text = "declared digits:v2 (as digits:latest), but the training data comes from digits:v1"
    assert refs == ("digits:v1",)
    assert said == [f"{text}; both are recorded (begat show {recorder.run.id})"]
    assert observed(recorder, Images(first.path)) == (("digits:v1",), [])
    declared, read = edges(recorder)["digits:v2"], edges(recorder)["digits:v1"]
    assert (declared.is_declared, declared.is_detected, declared.mismatch) == (True, False, text)
    assert (read.is_declared, read.is_detected, read.mismatch) == (False, True, None)
    assert (read.requested, read.role) == (None, "train")
    assert [used.ref for used in recorder.run.inputs] == ["digits:v2", "digits:v1"]


def test_a_version_that_was_declared_in_two_ways_is_warned_of_once(
    first: begat.Version, second: begat.Version
) -> None:
    recorder = attach("digits:latest", "digits:v2")
    assert recorder.run is not None
    _, said = observed(recorder, Images(first.path))
    assert len(said) == 1
    assert observed(recorder, Images(first.path)) == (("digits:v1",), [])
    told = [(edge.requested, edge.mismatch is not None) for edge in recorder.run.edges]
    assert told == [("digits:latest", True), ("digits:v2", False), (None, False)]


def test_several_other_versions_are_one_warning(
    store: begat.Store, first: begat.Version, second: begat.Version
) -> None:
    _digits(store, 3)
    recorder = attach("digits:v3")
    refs, (said,) = observed(recorder, [Images(first.path), Images(second.path)])
    assert refs == ("digits:v1", "digits:v2")
    assert "comes from digits:v1, digits:v2;" in said


def test_a_declared_version_among_others_that_are_read_is_no_mismatch(
    first: begat.Version, second: begat.Version
) -> None:
    recorder = attach("digits:v2")
    data = Several(Images(first.path), Images(second.path))
    assert observed(recorder, data) == (("digits:v1", "digits:v2"), [])
    assert edges(recorder)["digits:v2"].mismatch is None


def test_data_of_another_artifact_is_an_input_and_no_mismatch(
    store: begat.Store, first: begat.Version
) -> None:
    letters = _digits(store, 7, "letters")
    recorder = attach("digits:v1")
    assert observed(recorder, Images(letters.path)) == (("letters:v1",), [])
    assert edges(recorder)["letters:v1"].is_declared is False
    assert edges(recorder)["digits:v1"].is_detected is False


def test_show_tells_of_a_mismatch_and_of_what_was_detected(
    first: begat.Version, second: begat.Version
) -> None:
    recorder = attach("digits:v2")
    observed(recorder, Images(first.path))
    assert recorder.run is not None
    shown = done("show", recorder.run.id).out
    text = "declared digits:v2, but the training data comes from digits:v1"
    assert f"mismatch  {text}\n" in shown
    assert "digits:v1, as train (detected, not declared)\n" in shown
    facts = done("show", recorder.run.id, "--json").json
    assert [(e["ref"], e["is_detected"], e["mismatch"]) for e in facts["edges"]] == [
        ("digits:v2", False, text),
        ("digits:v1", True, None),
    ]


def test_a_mismatch_survives_the_loss_of_the_catalog(
    store: begat.Store, first: begat.Version, second: begat.Version
) -> None:
    with begat.start_run("train") as run:
        recorder = attach("digits:v2")
        observed(recorder, Images(first.path))
        run.log_artifact("net", b"weights")
    told = [edge.mismatch for edge in run.edges if edge.kind == "used"]
    assert told[0] is not None
    store.close()
    for leftover in store.path.glob("catalog.sqlite*"):
        leftover.unlink()
    rebuild_store(store.path)
    rebuilt = begat.open_store().get_run(run.id).edges
    assert [edge.mismatch for edge in rebuilt if edge.kind == "used"] == told


# --- what is looked at ---


@pytest.mark.parametrize(
    "name",
    [
        *("root", "path", "file", "filename", "data_dir", "directory", "folder"),
        *("_root", "img_dir", "train_files", "image_paths", "FILENAMES"),
    ],
)
def test_an_attribute_that_is_named_after_a_place_is_looked_at(
    first: begat.Version, name: str
) -> None:
    class Data:
        pass

    setattr(data := Data(), name, str(first.path / "labels.csv"))
    assert attach().observe(data) == ("digits:v1",)


@pytest.mark.parametrize("name", ["comment", "val_dir", "test_files", "profile"])
def test_an_attribute_that_is_not_the_place_of_training_data_is_left_alone(
    first: begat.Version, name: str
) -> None:
    class Data:
        pass

    setattr(data := Data(), name, str(first.path))
    assert attach().observe(data) == ()


def test_samples_are_known_by_the_first_of_them(first: begat.Version) -> None:
    class Folder:
        samples = ((str(first.path / "train" / "0.png"), 0), ("elsewhere.png", 1))

    assert attach().observe(Loader(Folder())) == ("digits:v1",)


def test_slots_are_looked_at_too(first: begat.Version) -> None:
    class Slotted:
        __slots__ = ("root", "unfilled")

        def __init__(self) -> None:
            self.root = first.path

    assert attach().observe(Slotted()) == ("digits:v1",)


def test_loaders_in_dicts_and_lists_and_datasets_in_datasets_are_looked_into(
    first: begat.Version, second: begat.Version
) -> None:
    data = {"a": [Loader(Several(Loader(Images(first.path))))], "b": (Loader(Images(second.path)),)}
    assert set(attach().observe(data)) == {"digits:v1", "digits:v2"}


def test_data_that_nobody_handed_out_is_nothing(first: begat.Version) -> None:
    Path("elsewhere").mkdir()
    recorder = attach("digits:v1")
    for data in (
        Images("elsewhere"),
        Images(""),
        None,
        7,
        object(),
        [],
        b"bytes",
        "a\0b",
        "x" * 9999,
    ):
        assert observed(recorder, data) == ((), [])
    assert edges(recorder)["digits:v1"].is_detected is False


def test_a_version_of_another_store_is_nothing(first: begat.Version) -> None:
    other = begat.open_store("other")
    theirs = _digits(other, 9)
    assert observed(attach(), [Images(theirs.path), theirs]) == ((), [])


def test_none_of_the_datas_own_code_runs(first: begat.Version) -> None:
    ran_code: list[str] = []

    class Eager(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            ran_code.append("__iter__")
            raise RuntimeError

        def __len__(self) -> int:
            ran_code.append("__len__")
            raise RuntimeError

    class Hostile:
        def __init__(self) -> None:
            self.root = first.path
            self.files = Eager(["a"])

        @property
        def path(self) -> str:
            ran_code.append("path")
            raise RuntimeError

        @property
        def __class__(self) -> type:
            ran_code.append("__class__")
            raise RuntimeError

        def __getattr__(self, name: str) -> Any:
            ran_code.append(name)
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            ran_code.append("__eq__")
            raise RuntimeError

        __hash__ = None  # pyright: ignore[reportAssignmentType]

    assert observed(attach(), {"loader": Loader(Hostile())}) == (("digits:v1",), [])
    assert ran_code == []


def test_a_long_list_is_not_read_to_its_end(first: begat.Version) -> None:
    data = Images(first.path)
    data.files = [f"elsewhere/{number}" for number in range(1_000_000)]  # type: ignore[attr-defined]
    looked_at = list(observing.places(Several(*[data] * 3, Images("b"))))
    assert looked_at[:2] == [str(first.path), "b"]
    assert len(looked_at) == 2 + observing.MOST_SAMPLES


def test_data_that_holds_itself_comes_to_an_end() -> None:
    data = Loader(None)
    data.dataset = Several(data, [data], {"again": data})
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert attach().observe([data, deep]) == ()


def test_a_deep_and_wide_heap_of_loaders_is_looked_at_in_part(first: begat.Version) -> None:
    def heap(level: int) -> Any:
        return Several(*(heap(level - 1) for _ in range(6))) if level else Images("elsewhere")

    looked_at = list(observing.places([Images(first.path), heap(5)]))
    assert looked_at[0] == str(first.path)
    assert len(looked_at) < observing.MOST_OBJECTS


# --- where it is recorded ---


def test_the_folder_that_another_process_was_given_is_known_by_the_cache(
    first: begat.Version,
) -> None:
    code = f"""
import sys; sys.path[:0] = {[path for path in sys.path if path]!r}
import begat; print(begat.get_artifact("digits:v1").path)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    recorder = attach("digits:latest")
    assert recorder.observe(Images(told.stdout.strip())) == ("digits:v1",)
    assert edges(recorder)["digits:v1"].is_detected


def test_the_cache_itself_and_what_is_no_folder_of_it_is_nothing(first: begat.Version) -> None:
    place = first.path.parent
    recorder = attach()
    assert recorder.observe([place, place.parent, place / "seal", place.parent / "locks"]) == ()
    assert recorder.observe(place.parent / ("0" * 64) / "files") == ()


def test_a_forked_child_knows_what_its_parent_was_given(first: begat.Version) -> None:
    path = first.path
    with handed_out._lock:  # as if another thread held it at the fork
        pid = os.fork()
        if pid == 0:
            handed_out.remember("mine", store_uid="s", version_uid="v", is_shared=False)
            is_known = [one.version_uid for one in handed_out.find(path)] == [first.uid]
            os._exit(0 if is_known else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_where_nothing_is_recorded_nothing_is_looked_at(
    store: begat.Store, first: begat.Version
) -> None:
    data = Images(first.path)
    assert attach(is_main=False).observe(data) == ()
    recorder = attach()
    recorder.finish()
    assert recorder.observe(data) == ()
    assert first.consumed_by == ()


def test_a_store_that_cannot_be_asked_is_a_warning_or_an_error(
    store: begat.Store, first: begat.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Images(first.path)
    calm, strict = attach(), attach(on_error="raise")

    def fail(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("the store is away")

    for recorder in (calm, strict):
        monkeypatch.setattr(recorder.store.catalog.runs, "use", fail)
    refs, (said,) = observed(calm, data)
    assert refs == ()
    assert "the store is away" in said
    with pytest.raises(StoreUnavailable):
        strict.observe(data)


# --- what was handed out ---


def test_what_is_remembered_of_folders_is_bounded() -> None:
    for number in range(handed_out.MOST_FOLDERS + 10):
        handed_out.remember(f"at/{number}", store_uid="s", version_uid="v", is_shared=False)
    for number in range(50):
        handed_out.remember("busy", store_uid="s", version_uid=str(number), is_shared=False)
    assert len(handed_out._given) == handed_out.MOST_FOLDERS
    assert list(handed_out.find("at/0")) == []
    versions = [one.version_uid for one in handed_out.find("busy/x")]
    assert versions == [str(number) for number in range(49, 41, -1)]


def test_threads_that_are_given_versions_at_once_lose_none() -> None:
    def remember(start: int) -> None:
        for number in range(start, 1_000, 4):
            handed_out.remember(
                f"at/{number}", store_uid="s", version_uid=str(number), is_shared=False
            )

    threads = [threading.Thread(target=remember, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(1_000):
        (found,) = handed_out.find(f"at/{number}/deep/er")
        assert (found.version_uid, found.inside) == (str(number), "deep/er")


def test_data_is_not_kept_alive_by_looking_at_it(first: begat.Version) -> None:
    data = Loader(Images(first.path))
    attach().observe(data)
    alive = weakref.ref(data)
    del data
    gc.collect()
    assert alive() is None
