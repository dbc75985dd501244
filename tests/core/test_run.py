"""Runs: how they begin, what they use and make, how they end, and who is part of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import begat
from begat import Store
from begat.drawing.nodes import picture_of
from begat.errors import (
    AmbiguousReference,
    ArtifactNotFound,
    BadMetadata,
    BadName,
    BadReference,
    BegatWarning,
    BytesRetired,
    NotFound,
    Refused,
    RunFinished,
    RunNotFound,
    VersionDeleted,
    VersionNotFound,
)
from begat.process import host_name, user_name
from begat.run import status_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    # The default store, so that `begat.start_run` and child processes mean it too.
    with begat.open_store() as opened:
        yield opened


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in the same store."""
    return subprocess.run(
        [sys.executable, "-c", "import os, sys, begat\n" + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def edges(run: begat.Run) -> list[tuple[str, str | None]]:
    return [(edge.kind, edge.requested) for edge in run.edges]


# --- how runs end ---


def test_a_block_that_ends_well_finishes_the_run(store: Store) -> None:
    with store.start_run("train", job="j", params={"lr": 0.1}, tags=["t"]) as run:
        assert run.status == "running"
        assert run.ended_at is None
        assert begat.active_run() == run
    assert (run.status, run.error, run.job, run.params, run.tags) == (
        "finished",
        None,
        "j",
        {"lr": 0.1},
        ("t",),
    )
    assert run.ended_at is not None
    assert run.ended_at >= run.started_at
    assert begat.active_run() is None
    assert store.get_run(run.id) == run
    assert store.get_run(run.id).status == "finished"


class Unusual(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("bad lr"), "failed", {"type": "ValueError", "message": "bad lr"}),
        (Unusual("x" * 5000), "failed", {"type": f"{__name__}.Unusual", "message": "x" * 2000}),
        (KeyboardInterrupt(), "interrupted", {"type": "KeyboardInterrupt", "message": ""}),
        (SystemExit(0), "finished", None),
        (SystemExit(None), "finished", None),
        (SystemExit(3), "failed", {"type": "SystemExit", "message": "3"}),
        (SystemExit("no data"), "failed", {"type": "SystemExit", "message": "no data"}),
    ],
)
def test_an_exception_ends_the_run_and_is_told(
    store: Store, error: BaseException, status: str, told: dict[str, str] | None
) -> None:
    with pytest.raises(type(error)):
        with store.start_run("train") as run:
            raise error
    assert (run.status, run.error) == (status, told)


def test_secrets_in_the_message_of_an_exception_are_masked(store: Store) -> None:
    with pytest.raises(RuntimeError):
        with store.start_run("train") as run:
            raise RuntimeError("cannot log in: password=hunter2 at https://me:hunter2@host/")
    assert run.error is not None
    assert "hunter2" not in json.dumps(dict(run.error))


def test_finish_ends_a_run_once(store: Store) -> None:
    run = store.start_run("train")
    run.finish("interrupted")
    run.finish("finished")
    assert run.status == "interrupted"
    with pytest.raises(TypeError):
        run.finish("lost")


def test_a_run_that_is_over_uses_and_makes_nothing(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("train") as run:
        pass
    for act in (lambda: run.use_artifact("digits"), lambda: run.log_artifact("m", b"1")):
        with pytest.raises(RunFinished):
            act()
    # Nor through another object, which does not know that it is over.
    with store.start_run("train") as run:
        late = store.get_run(run.id)
        assert late.status == "running"
    with pytest.raises(RunFinished):
        late.log_artifact("m", b"1")
    assert [a.name for a in store.artifacts()] == ["digits"]


def test_runs_that_nobody_ended_end_with_their_process(store: Store) -> None:
    assert child("begat.start_run('fine')").returncode == 0
    assert child("begat.start_run('broken'); raise ValueError('x')").returncode == 1
    assert child("begat.start_run('stopped'); raise KeyboardInterrupt").returncode != 0
    found = {run.name: (run.status, run.error and run.error["type"]) for run in store.runs()}
    assert found == {
        "fine": ("finished", None),
        "broken": ("failed", "ValueError"),
        "stopped": ("interrupted", "KeyboardInterrupt"),
    }


def test_a_run_whose_process_was_killed_is_lost(store: Store) -> None:
    done = child("begat.start_run('killed'); os.kill(os.getpid(), 9)")
    assert done.returncode == -signal.SIGKILL
    [run] = store.runs()
    assert run.status == "lost"


def test_a_run_of_another_host_is_lost_when_it_was_not_heard_of_for_ten_minutes(
    store: Store,
) -> None:
    with store.start_run("far") as run:
        record = replace(run.record, host="elsewhere")
    minute = 60 * 1_000_000
    assert status_of(record, record.heartbeat_at + 9 * minute) == "running"
    assert status_of(record, record.heartbeat_at + 11 * minute) == "lost"


def test_a_log_at_exit_is_stored(store: Store) -> None:
    done = child("import atexit; atexit.register(lambda: begat.log_artifact('late', b'x'))")
    assert (done.returncode, done.stderr) == (0, "")
    assert store.get_artifact("late").read_bytes("late") == b"x"


# --- nesting, and the active run ---


def test_a_run_inside_the_block_of_another_is_its_child(store: Store) -> None:
    with store.start_run("outer") as outer:
        with store.start_run("inner") as inner:
            assert begat.active_run() == inner
            begat.log_artifact("x", b"1")
        assert begat.active_run() == outer
        begat.log_artifact("y", b"1")
    assert inner.parent == outer
    assert outer.parent is None
    assert ([v.name for v in inner.outputs], [v.name for v in outer.outputs]) == (["x"], ["y"])


def test_a_run_started_outside_a_block_finishes_the_open_one_and_says_so(store: Store) -> None:
    first = store.start_run("first")
    with pytest.warns(begat.BegatWarning, match="first"):
        second = store.start_run("second")
    assert (first.status, second.status, second.parent) == ("finished", "running", None)
    second.finish()


def test_other_threads_find_the_newest_open_run(store: Store) -> None:
    with store.start_run("outer"), store.start_run("inner") as inner:
        found: list[begat.Run | None] = []
        thread = threading.Thread(target=lambda: found.append(begat.active_run()))
        thread.start()
        thread.join()
    assert found == [inner]


def test_without_an_active_run_reading_and_logging_work_and_record_no_run(store: Store) -> None:
    version = begat.log_artifact("digits", b"1")
    assert begat.use_artifact("digits").uid == version.uid
    assert version.produced_by is None
    assert version.consumed_by == ()
    assert store.runs() == []


def test_get_artifact_never_records_a_use(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("look") as run:
        begat.get_artifact("digits")
        _ = store.get_artifact("digits").path
    assert run.edges == ()


# --- joining ---


def test_a_child_process_joins_the_run(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("parent") as run:
        assert os.environ["BEGAT_RUN_ID"] == run.id
        done = child(
            """
            with begat.start_run("ignored", uses=["digits"]) as run:
                begat.log_artifact("made", b"1")
            print(run.id, run.status)
            begat.log_artifact("made-after", b"2")
            """
        )
        assert done.stdout.split() == [run.id, "running"], done.stderr
        assert run.status == "running"
    assert "BEGAT_RUN_ID" not in os.environ
    assert [v.ref for v in run.outputs] == ["made:v1", "made-after:v1"]
    assert [v.ref for v in run.inputs] == ["digits:v1"]
    assert len(store.runs()) == 1


def test_the_failure_of_a_child_process_does_not_end_the_run_that_it_joined(store: Store) -> None:
    with store.start_run("parent") as run:
        done = child("with begat.start_run(): raise ValueError('child')")
        assert done.returncode == 1
        assert run.status == "running"
    assert (run.status, run.error) == ("finished", None)


def test_a_joining_process_inherits_what_references_mean(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("parent") as run:
        run.use_artifact("digits:latest")
        store.log_artifact("digits", b"2")
        done = child("print(begat.start_run().use_artifact('digits').ref)")
        assert done.stdout.strip() == "digits:v1", done.stderr


def test_a_run_id_of_another_store_is_told_and_not_joined(store: Store) -> None:
    done = child(
        "import warnings; warnings.simplefilter('always'); begat.start_run('own')",
        BEGAT_RUN_ID="01234567-0000-7000-8000-000000000000",
    )
    assert done.returncode == 0
    assert "not in" in done.stderr
    assert [run.name for run in store.runs()] == ["own"]


def test_a_forked_child_logs_into_the_run_and_does_not_end_it(store: Store) -> None:
    with store.start_run("parent") as run:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store.log_artifact("before", b"x")
                run.log_artifact("made", b"1")
                with begat.start_run("joined") as joined:
                    joined.log_artifact("made-too", b"2")
                run.finish("failed")
                code = 0 if joined.id == run.id else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert run.status == "running"
    assert run.status == "finished"
    assert [v.ref for v in run.outputs] == ["made:v1", "made-too:v1"]
    assert len(store.runs()) == 1


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_process_that_is_not_rank_0_only_watches(store: Store, rank: str) -> None:
    store.log_artifact("digits", b"1")
    done = child(
        """
        with begat.start_run("rank", uses=["digits"]) as run:
            print(run.use_artifact("digits").ref, run.status)
            run.log_params({"a": 1}); run.log_metrics({"a": 1}); run.set_tags("t")
            try:
                run.log_artifact("m", b"1")
            except begat.errors.Refused as error:
                print("refused" if "rank 0" in str(error) else error)
        """,
        **{rank: "1"},
    )
    assert done.stdout.split() == ["digits:v1", "running", "refused"], done.stderr
    assert store.runs() == []
    assert [a.name for a in store.artifacts()] == ["digits"]
    assert issubclass(RunFinished, Refused)


def test_a_watching_process_resolves_a_reference_once_and_is_never_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = store.log_artifact("digits", b"1")
    monkeypatch.setenv("RANK", "1")
    with begat.open_store(tmp_path / "other") as other, store.start_run("rank") as run:
        assert run.use_artifact("digits").ref == "digits:v1"
        second = store.log_artifact("digits", b"2")
        assert run.use_artifact("digits:latest").ref == "digits:v1"
        assert run.use_artifact("digits", refresh=True).ref == "digits:v2"
        assert run.use_artifact("digits").ref == "digits:v2"
        assert run.use_artifact(first) == first
        with pytest.raises(VersionNotFound):
            run.use_artifact(other.log_artifact("digits", b"3"))
        assert status_of(run.record, store.catalog.now() + 3_600_000_000) == "running"
        # Nor does a run inside it record.
        with store.start_run("inner") as inner:
            assert inner.use_artifact("digits") == second
    assert store.runs() == []


# --- what runs use ---


def test_what_a_run_uses_is_recorded_at_once(store: Store) -> None:
    version = store.log_artifact("digits", b"1", aliases=["best"])
    with store.start_run("train", uses=["digits:best"]) as run:
        with begat.open_store() as other:
            assert [v.ref for v in other.get_run(run.id).inputs] == ["digits:v1"]
        assert run.use_artifact("digits", role="test data").uid == version.uid
    assert edges(run) == [("used", "digits:best"), ("used", "digits")]
    assert [edge.role for edge in run.edges] == [None, "test data"]
    assert version.consumed_by == (run,)


def test_a_version_that_was_asked_for_in_two_ways_is_outdated_by_either(store: Store) -> None:
    store.log_artifact("digits", b"1", aliases=["best"])
    with store.start_run("train", uses=["digits:best"]) as run:
        run.use_artifact("digits:latest")
        run.log_artifact("model", b"m")
    assert store.stale() == []
    store.log_artifact("digits", b"2")
    (stale,) = store.stale()
    assert stale.reason == "model:v1 was made from digits:v1; digits:latest is now digits:v2"
    assert [one.requested for one in stale.behind] == ["digits:latest"]


def test_a_version_that_was_also_pinned_is_outdated_with_pinned_inputs_left_out(
    store: Store,
) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("train", uses=["digits:v1"]) as run:
        run.log_artifact("early", b"m")
        run.use_artifact("digits:latest")
        run.log_artifact("model", b"m")
    store.log_artifact("digits", b"2")
    (stale,) = store.stale(ignore_pinned=True)
    assert [one.requested for one in stale.behind] == ["digits:latest"]
    assert stale.ref == "model:v1"
    assert {stale.ref for stale in store.stale()} == {"early:v1", "model:v1"}
    lines = store.why("model:v1", ignore_pinned=True).lines
    assert [line.rpartition(": ")[2] for line in lines[1:]] == [
        "asked for as digits:v1, not compared",
        "digits:latest is now digits:v2",
    ]


def test_a_version_that_was_asked_for_in_two_ways_is_shown_once(store: Store) -> None:
    digits = store.log_artifact("digits", b"1")
    with store.start_run("train", uses=["digits:v1", "digits:latest"]) as run:
        model = run.log_artifact("model", b"m")
    assert edges(run) == [("used", "digits:v1"), ("used", "digits:latest"), ("made", None)]
    assert run.inputs == (digits,)
    assert digits.consumed_by == (run,)
    for root in (digits, model, run):
        lineage = store.lineage(root)
        assert lineage.tree().count("digits:v1") == 1
        assert lineage.tree().count("train") == 1
        assert lineage.dot().count(" -> ") == 2
        assert len(picture_of(lineage.graph, most=100).lines) == 2
        told = [edge["requested"] for edge in lineage.to_dict()["edges"]]
        assert told == ["digits:v1", "digits:latest", None]
    assert len(store.lineage(model).graph.inputs_of(model.uid)) == 1
    assert len(store.lineage(digits).graph.consumers_of(digits.uid)) == 1


def test_one_reference_needs_no_list(store: Store) -> None:
    version = store.log_artifact("digits", b"1")
    with store.start_run("a", uses="digits") as run:
        pass
    with store.start_run("b", uses=[version]) as other:
        pass
    assert (run.inputs, other.inputs) == ((version,), (version,))
    # The edge keeps what was typed.
    assert (edges(run), edges(other)) == ([("used", "digits")], [("used", "digits:v1")])


def test_a_reference_with_a_path_is_no_input(store: Store) -> None:
    version = store.log_artifact("digits", b"1", type="dataset")
    ref = "begat://digits:v1/digits"
    with store.start_run("train") as run:
        for act in (
            run.use_artifact,
            begat.use_artifact,
            store.get_artifact,
            store.why,
            store.lineage,
            store.delete,
            lambda ref: store.alias(ref, "best"),
        ):
            with pytest.raises(
                BadReference, match=r"'digits:v1'.*version\.open\('digits'\).*begat get"
            ):
                act(ref)
        assert run.inputs == ()
        assert run.use_artifact("begat://digits:v1") == version
    with pytest.raises(BadReference):
        store.start_run("test", uses=[ref])
    assert [run.status for run in store.runs()] == ["finished"]


def test_within_a_run_a_reference_resolves_once(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("train") as run:
        assert run.use_artifact("digits").ref == "digits:v1"
        store.log_artifact("digits", b"2")
        assert run.use_artifact("digits").ref == "digits:v1"
        assert run.use_artifact("digits:latest").ref == "digits:v1"  # another way to say the same
        assert run.use_artifact("digits", refresh=True).ref == "digits:v2"
        assert run.use_artifact("digits").ref == "digits:v2"
        assert store.get_artifact("digits").ref == "digits:v2"
    assert [v.ref for v in run.inputs] == ["digits:v1", "digits:v2"]


def test_after_it_logged_a_newer_version_a_run_resolves_anew(store: Store) -> None:
    store.log_artifact("model", b"1", aliases=["best"])
    store.log_artifact("other", b"1")
    with store.start_run("train", uses=["model", "other"]) as run:
        run.log_artifact("model", b"2")
        store.log_artifact("other", b"2")
        assert run.use_artifact("model").ref == "model:v2"
        assert run.use_artifact("other").ref == "other:v1"


def test_a_version_object_means_itself_also_where_another_store_has_the_same_name(
    store: Store, tmp_path: Path
) -> None:
    store.log_artifact("digits", b"here")
    with begat.open_store(tmp_path / "other") as other:
        foreign = other.log_artifact("digits", b"there")
        with store.start_run("train") as run, pytest.raises(VersionNotFound):
            run.use_artifact(foreign)
        assert run.edges == ()


def test_what_cannot_be_used_raises_and_is_not_recorded(store: Store) -> None:
    gone = store.log_artifact("digits", b"1")
    deleted = store.log_artifact("digits", b"2")
    store.log_artifact("digits", b"3")
    store.catalog.labels.retire(gone.uid, by="test")
    store.gc(dry_run=False)
    deleted.delete()
    with store.start_run("train") as run:
        for ref, error in [
            ("nothing", ArtifactNotFound),
            ("digits:v9", VersionNotFound),
            ("digits:", BadReference),
            ("digits:v1", BytesRetired),
            ("digits:v2", VersionDeleted),
        ]:
            with pytest.raises(error):
                run.use_artifact(ref)
    assert run.edges == ()


@pytest.mark.parametrize(
    ("uses", "error"),
    [
        (["digits", "nothing"], ArtifactNotFound),
        (["digits:v9"], VersionNotFound),
        (["digits:v1"], BytesRetired),
        (["digits:v2"], VersionDeleted),
        ("no name", BadReference),
        (["begat://digits:v3/value"], BadReference),
    ],
)
def test_a_run_whose_inputs_cannot_be_used_is_not_started(
    store: Store, uses: Any, error: type[Exception]
) -> None:
    dropped, deleted, _ = [store.log_artifact("digits", text) for text in (b"1", b"2", b"3")]
    store.catalog.labels.retire(dropped.uid, by="test")
    store.gc(dry_run=False)
    deleted.delete()
    before = store.start_run("before")
    for asked in (uses, [dropped, "digits"], [deleted]):
        with pytest.raises(error if asked is uses else NotFound):
            store.start_run("train", uses=asked)
    assert [run.name for run in store.runs()] == ["before"]
    # The run that was open before is so still.
    assert (begat.active_run(), before.status) == (before, "running")
    assert os.environ["BEGAT_RUN_ID"] == before.id
    before.finish()


def test_a_run_that_is_joined_stays_open_whatever_its_joiner_cannot_use(store: Store) -> None:
    with store.start_run("outer") as outer:
        done = child("begat.start_run(uses=['nothing'])")
        assert "ArtifactNotFound" in done.stderr
        assert outer.status == "running"
    assert [run.name for run in store.runs()] == ["outer"]


# --- what runs make ---


def test_what_a_run_makes_and_confirms_is_recorded(store: Store) -> None:
    with store.start_run("one") as one:
        version = one.log_artifact("digits", b"1")
        one.log_artifact("digits", b"1")  # its own content again: nothing to confirm
    with store.start_run("two") as two:
        assert not two.log_artifact("digits", b"1").is_new
    assert (one.outputs, two.outputs) == ((version,), ())
    assert (edges(one), edges(two)) == ([("made", None)], [("confirmed", None)])
    assert (version.produced_by, version.confirmed_by) == (one, (two,))


def test_params_metrics_and_tags_are_added_to(store: Store) -> None:
    with store.start_run("train", params={"lr": 0.1, "a": 1}) as run:
        run.log_params({"lr": 0.2})
        run.log_metrics({"acc": 0.9})
        run.log_metrics({"acc": 0.95, "loss": 1})
        run.set_tags("good", "good", "final")
    assert run.params == {"lr": 0.2, "a": 1}
    assert run.metrics == {"acc": 0.95, "loss": 1}
    assert run.tags == ("final", "good")
    assert [r.id for r in store.runs(tag="good", job=None, status="finished")] == [run.id]


def test_a_run_that_is_over_takes_metrics_and_tags_but_no_params(store: Store) -> None:
    with store.start_run("train", params={"lr": 0.1}) as run:
        late = store.get_run(run.id)
    for over in (run, late):
        with pytest.raises(RunFinished, match=r"finished.*log_metrics"):
            over.log_params({"lr": 0.2})
    late.log_metrics({"acc": 0.9})
    late.set_tags("evaluated")
    assert (run.params, run.metrics, run.tags) == ({"lr": 0.1}, {"acc": 0.9}, ("evaluated",))
    assert run.status == "finished"


def test_bad_params_and_tags_are_refused_before_a_run_is_recorded(store: Store) -> None:
    with pytest.raises(BadMetadata):
        store.start_run("train", params={"x": float("inf")})
    with pytest.raises(BadName):
        store.start_run("train", tags=["a b"])
    assert store.runs() == []
    with store.start_run("train") as run:
        with pytest.raises(BadMetadata):
            run.log_metrics({"x": object()})
        with pytest.raises(BadName):
            run.set_tags("v1")
    assert run.metrics == {}


def test_runs_are_found_by_job_status_tag_and_id(store: Store) -> None:
    with store.start_run("a", job="train") as a:
        pass
    with pytest.raises(ValueError, match="x"):
        with store.start_run("b", job="train", tags=["t"]) as b:
            raise ValueError("x")
    assert [run.name for run in store.runs()] == ["b", "a"]
    assert [run.name for run in store.runs(status="failed")] == ["b"]
    assert [run.name for run in store.runs(tag="t")] == ["b"]
    assert [run.name for run in store.runs(job="train", limit=1)] == ["b"]
    assert store.get_run(a.id[:-1]) == a
    assert store.get_run(b.id) == b
    for unknown in ("", "ffff", "c", "train"):
        with pytest.raises(RunNotFound):
            store.get_run(unknown)


def test_runs_are_found_by_the_name_that_is_printed(store: Store) -> None:
    with store.start_run() as a:
        pass
    with store.start_run("night") as b:
        model = b.log_artifact("model", b"w")
    assert a.name.startswith("run-")
    assert store.get_run(a.name) == a
    assert list(store.lineage("night").graph.versions) == [model.uid]
    with store.start_run("night") as c:
        pass
    for act in (store.get_run, store.lineage):
        with pytest.raises(AmbiguousReference, match=rf"{c.id} \(night\), {b.id} \(night\)"):
            act("night")
    with pytest.raises(AmbiguousReference, match=b.id):
        store.get_run("01")


def test_a_variable_that_holds_the_name_of_a_run_joins_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.start_run("night") as first:
        pass
    for text in ("night", first.id[:13]):
        monkeypatch.setenv("BEGAT_RUN_ID", text)
        with pytest.warns(BegatWarning, match="not in this store"):
            assert begat.active_run() is None
        with pytest.warns(BegatWarning, match="not in this store"):
            store.start_run("other").finish()
    assert len(store.runs()) == 3


def test_how_and_where_it_ran_is_captured_without_secrets(store: Store) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import begat; begat.start_run('x')",
            "--lr",
            "1",
            "--password",
            "hunter2",
            "--token=abc1",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MY_SECRET": "hunter2"},
        timeout=60,
    )
    assert done.returncode == 0
    [run] = store.runs()
    argv = run.command["argv"]
    assert "--lr" in argv
    assert run.command["cwd"] == os.getcwd()
    everything = json.dumps([dict(run.command), dict(run.environment), dict(run.git)])
    assert "hunter2" not in everything
    assert "abc1" not in everything
    assert run.environment["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert "packages" in run.environment
    assert (run.host, run.user) == (host_name(), user_name())


def test_runs_look_well_in_a_terminal_and_a_notebook(store: Store) -> None:
    with store.start_run("<train>", params={"lr": 1}) as run:
        run.log_artifact("digits", b"1")
    assert "<train>" in repr(run)
    assert run.id in repr(run)
    assert "&lt;train&gt;" in run._repr_html_()
    assert "digits:v1" in run._repr_html_()


# --- lineage ---


def test_lineage_reads_both_ways_by_depth_from_a_version_or_a_run(store: Store) -> None:
    with store.start_run("ingest") as ingest:
        ingest.log_artifact("data", b"1")
    with store.start_run("train", uses=["data"]) as train:
        train.log_artifact("model", b"1")
    with store.start_run("predict", uses=["model"]) as predict:
        predict.log_artifact("predictions", b"1")

    def refs(what: str | begat.Version | begat.Run, direction, depth=None) -> set[str]:
        return {version.ref for version in store.lineage(what, direction, depth).versions}

    assert refs("predictions", "upstream") == {"predictions:v1", "model:v1", "data:v1"}
    assert refs("predictions", "upstream", 1) == {"predictions:v1", "model:v1"}
    assert refs("data", "downstream") == {"predictions:v1", "model:v1", "data:v1"}
    assert refs("model", "both", 1) == {"predictions:v1", "model:v1", "data:v1"}
    assert refs(train, "upstream") == {"data:v1"}
    assert refs(train, "downstream") == {"model:v1", "predictions:v1"}
    assert refs(train.id, "downstream", 1) == {"model:v1"}
    assert refs(store.get_artifact("model"), "upstream") == {"model:v1", "data:v1"}
    with pytest.raises(ArtifactNotFound):
        store.lineage("nothing")
    with pytest.raises(TypeError):
        store.lineage("model", "sideways")  # type: ignore[arg-type]


def test_a_deleted_version_can_still_be_asked_where_it_came_from(store: Store) -> None:
    store.log_artifact("digits", b"1")
    with store.start_run("train", uses=["digits"]) as run:
        gone = run.log_artifact("model", b"1", version="1.0.0")
    gone.delete()
    for ref in ("model:v1", "model:1.0.0", f"model@{gone.digest}", f"model@{gone.digest[:12]}"):
        found = store.lineage(ref, "upstream")
        assert {version.ref for version in found.versions} == {"digits:v1", "model:v1"}
        assert "deleted" in found.tree().splitlines()[0]
        assert store.why(ref).lines[0].startswith("model:v1 was deleted")
        for act in (store.get_artifact, run.use_artifact, store.verify, store.delete):
            with pytest.raises((VersionDeleted, RunFinished)):
                act(ref)
    for ref in ("model", "model:latest"):
        with pytest.raises(VersionNotFound):
            store.lineage(ref)
    # A version that is there goes before a deleted one of the same content.
    store.log_artifact("model", b"1")
    assert store.why(f"model@{gone.digest}").ref == "model:v2"


def test_a_run_that_uses_what_it_made_makes_no_cycle(store: Store) -> None:
    with store.start_run("train") as run:
        run.log_artifact("model", b"1")
        run.use_artifact("model")
        run.log_artifact("model", b"2")
        run.use_artifact("model")
    lineage = store.lineage("model:v2", "upstream")
    assert {version.ref for version in lineage.versions} == {"model:v1", "model:v2"}
    assert {v.ref for v in store.lineage("model:v1", "upstream").versions} == {"model:v1"}


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["use", "log", "log"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


@settings(
    max_examples=60 if os.environ.get("CI") else 15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=steps)
def test_ancestry_is_a_dag_whatever_runs_use_and_make(
    store: Store, steps: list[tuple[int, str, str, int]]
) -> None:
    """Three runs at once use and make the same three artifacts, their own outputs among them."""
    prefix = f"n{len(store.artifacts())}-"
    runs: list[begat.Run] = []
    for name in ("x", "y", "z"):
        runs.append(store.start_run(name).__enter__())
    for which, act, name, content in steps:
        run, name = runs[which], prefix + name
        if act == "log":
            run.log_artifact(name, b"%d" % content)
        elif any(artifact.name == name for artifact in store.artifacts()):
            run.use_artifact(name, refresh=True)
    for run in reversed(runs):
        run.__exit__(None, None, None)
    inputs: dict[str, set[str]] = {}
    for run in runs:
        used: set[str] = set()
        for edge in run.edges:
            if edge.kind == "used":
                used.add(edge.version_uid)
            elif edge.kind == "made":
                inputs[edge.version_uid] = set(used)
    done: set[str] = set()
    while ready := {uid for uid, needed in inputs.items() if uid not in done and needed <= done}:
        done |= ready
    assert done == inputs.keys()  # all can be put in an order in which inputs come first
    for uid in inputs:
        version = store.version_of(store.catalog.versions.get(uid))
        expected, waiting = {uid}, [uid]
        while waiting:
            more = inputs[waiting.pop()] - expected
            expected |= more
            waiting += more
        assert {v.uid for v in store.lineage(version, "upstream").versions} == expected


# --- stale ---


def train(store: Store, content: bytes, uses: list[str]) -> begat.Version:
    with store.start_run("train", job="train", uses=uses) as run:
        return run.log_artifact("model", content)


def test_a_version_is_stale_when_its_input_has_moved_on(store: Store) -> None:
    store.log_artifact("data", b"1")
    train(store, b"m1", ["data:latest"])
    with store.start_run("predict", uses=["model"]) as run:
        run.log_artifact("predictions", b"p")
    assert store.stale() == []
    store.log_artifact("data", b"2")
    found = {stale.ref: (stale.steps, stale.reason) for stale in store.stale()}
    assert {ref: steps for ref, (steps, _) in found.items()} == {"model:v1": 1, "predictions:v1": 2}
    assert "data:v2" in found["model:v1"][1]
    assert store.why("predictions").is_stale
    assert not store.why("data").is_stale
    train(store, b"m2", ["data:latest"])
    with store.start_run("predict", uses=["model"]) as run:
        run.log_artifact("predictions", b"p2")
    assert store.stale() == []


def test_an_alias_is_followed_and_a_number_is_compared_with_the_latest(store: Store) -> None:
    store.log_artifact("data", b"1", aliases=["prod"])
    train(store, b"by alias", ["data:prod"])
    with store.start_run("pinned", uses=["data:v1"]) as run:
        run.log_artifact("pinned", b"x")
    store.log_artifact("data", b"2")
    assert [stale.ref for stale in store.stale()] == ["pinned:v1"]
    assert store.stale(ignore_pinned=True) == []
    store.alias("data:v2", "prod")
    assert [stale.ref for stale in store.stale(ignore_pinned=True)] == ["model:v1"]


def test_a_newer_version_of_equal_content_makes_nothing_stale(store: Store) -> None:
    store.log_artifact("data", b"1")
    train(store, b"m", ["data"])
    store.log_artifact("data", b"1", metadata={"only": "metadata"})
    assert store.get_artifact("data").number == 2
    assert store.stale() == []


def test_a_confirmation_from_newer_inputs_makes_a_version_fresh(store: Store) -> None:
    store.log_artifact("data", b"1")
    model = train(store, b"m", ["data"])
    with store.start_run("predict", uses=["model"]) as run:
        run.log_artifact("predictions", b"p")
    store.log_artifact("data", b"2")
    assert [stale.ref for stale in store.stale()] == ["model:v1", "predictions:v1"]
    assert not train(store, b"m", ["data"]).is_new
    # The same content came of the newer data: what was made from it need not be made again.
    assert store.stale() == []
    assert not store.why("predictions").is_stale
    assert model.confirmed_by[0].inputs[0].ref == "data:v2"
