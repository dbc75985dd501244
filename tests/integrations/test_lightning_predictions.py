"""What `trainer.predict` gives is a version: a table with real row ids, made from a model and data that are known."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import begat
from begat.errors import ArtifactNotFound, BadInput
from lightning_kit import NAMESPACES, Boom, Kit, begat_warnings, boom, kits

# Most models here are no version, which is said each time.
pytestmark = pytest.mark.filterwarnings("ignore:begat does not know which version")

ROWS = 6
Give = Callable[[Any], Any]


@pytest.fixture(params=list(NAMESPACES))
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    yield from kits(request.param, tmp_path)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Kit]:
    """Under one of the names, where what is tested lies below both."""
    yield from kits("lightning.pytorch", tmp_path)


def callback(kit: Kit, *args: Any, **options: Any) -> Any:
    return importlib.import_module(NAMESPACES[kit.pl.__name__]).PredictionCallback(*args, **options)


def rows(first: int = 0) -> DataLoader[Any]:
    """Rows of four numbers, each the row's own plus `first`, the last batch smaller."""
    numbers = torch.arange(first, first + ROWS, dtype=torch.float32).unsqueeze(1)
    return DataLoader(TensorDataset(numbers.expand(-1, 4)), batch_size=4)


def predict(kit: Kit, ours: Any, give: Give, data: Any = None, **options: Any) -> Any:
    """Predict what `give` makes of each batch of rows."""
    model = kit.model()
    model.predict_step = lambda batch, batch_idx, dataloader_idx=0: give(batch[0])
    kit.trainer(ours).predict(model, data or rows(), return_predictions=False, **options)


def first(batch: Any) -> Any:
    return batch[:, 0]


def table(version: begat.Version) -> Any:
    return parquet.read_table(version.path)


# --- what is recorded ---


def test_predictions_are_a_version_made_from_data_and_model(kit: Kit) -> None:
    digits = kit.store.log_artifact("digits", b"0123", type="dataset")
    model = kit.model()
    kit.fit(model, kit.checkpoints(), kit.callback("net"))
    model.predict_step = lambda batch, batch_idx: batch[0][:, 0]
    (path,) = kit.folder.iterdir()
    with begat_warnings() as said:
        kit.trainer(callback(kit, "told", uses=["digits:latest"], classes=["a", "b"])).predict(
            model, rows(), ckpt_path=path
        )
    assert said == []
    (version,), (net,) = kit.versions("told"), kit.versions("net")
    assert version.type == "predictions"
    assert version.metadata == {"model": "net:v1", "datasets": ["digits:v1"], "classes": ["a", "b"]}
    run = version.produced_by
    assert run is not None
    assert (run.job, run.status) == ("predict-told", "finished")
    assert set(run.inputs) == {digits, net}
    assert {edge.role for edge in run.edges} == {None, "model"}
    assert [entry.path for entry in version.entries] == ["part-00000.parquet"]
    assert table(version)["pred"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert table(version)["id"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert json.loads(table(version).schema.metadata[b"begat"]) == {
        "run": run.id,
        **version.metadata,
    }


def test_the_name_is_by_default_that_of_the_model(kit: Kit) -> None:
    predict(kit, callback(kit), first)
    assert len(kit.versions("Net-predictions")) == 1


def test_nothing_is_left_behind(kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    trainer = kit.trainer(callback(kit, "told"))
    model = kit.model()
    model.predict_step = lambda batch, batch_idx: first(batch[0])
    trainer.predict(model, rows())
    assert len(kit.versions("told")) == 1
    assert "load_checkpoint" not in vars(trainer.strategy)
    assert os.listdir(tmp_path / "temporary") == []


def test_predicting_is_part_of_the_run_around_it(one: Kit) -> None:
    with begat.start_run("mine") as run:
        predict(one, callback(one, "told"), first)
    assert run.outputs == tuple(one.versions("told"))
    assert len(one.store.runs()) == 1


def test_the_same_callback_predicts_again_and_equal_predictions_are_confirmed(one: Kit) -> None:
    ours = callback(one, "told")
    predict(one, ours, first)
    predict(one, ours, lambda batch: first(batch) + 1)
    assert [table(v)["pred"].to_pylist()[0] for v in one.versions("told")] == [0.0, 1.0]


def test_a_fit_with_the_same_callback_records_no_predictions(kit: Kit) -> None:
    kit.fit(kit.model(), callback(kit, "told"), kit.callback("net"), enable_checkpointing=False)
    assert kit.versions("told") == []
    assert len(kit.store.runs()) == 1


def test_a_pickled_callback_records_like_the_one_it_was(kit: Kit) -> None:
    predict(kit, pickle.loads(pickle.dumps(callback(kit, "told"))), first)
    assert len(kit.versions("told")) == 1


# --- which version the model is ---


def models_of(kit: Kit) -> list[str]:
    run = kit.versions("told")[0].produced_by
    assert run is not None
    return [used.ref for used in run.inputs]


def test_best_is_the_version_that_is_loaded(kit: Kit) -> None:
    model = kit.model(scores=(0.1, 0.5))
    model.predict_step = lambda batch, batch_idx: first(batch[0])
    best = kit.checkpoints(monitor="score", save_top_k=-1)
    trainer = kit.fit(model, best, kit.callback("net"), callback(kit, "told"), max_epochs=2)
    trainer.predict(model, rows(), ckpt_path="best", return_predictions=False)
    assert models_of(kit) == ["net:v1"]


def test_after_a_fit_it_is_what_its_last_weights_were_saved_as(kit: Kit) -> None:
    model = kit.model()
    model.predict_step = lambda batch, batch_idx: first(batch[0])
    kit.fit(model, kit.checkpoints(save_top_k=-1), kit.callback("net"), max_epochs=2)
    kit.trainer(callback(kit, "told")).predict(model, rows(), return_predictions=False)
    assert models_of(kit) == ["net:v2"]


@pytest.mark.parametrize("fused", [False, True])
def test_weights_that_were_changed_since_are_no_version_and_a_warning(
    one: Kit, fused: bool
) -> None:
    model = one.model()
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters(), fused=fused)
    model.predict_step = lambda batch, batch_idx: first(batch[0])
    # Saved after three steps of four.
    one.fit(model, one.checkpoints(every_n_train_steps=3), one.callback("net"), max_epochs=2)
    assert [version.metadata["step"] for version in one.versions("net")] == [3]
    with begat_warnings() as said:
        one.trainer(callback(one, "told")).predict(model, rows(), return_predictions=False)
    assert models_of(one) == []
    assert len(said) == 1
    assert "which version the model" in said[0]


def test_the_user_may_say_it(one: Kit) -> None:
    one.store.log_artifact("mine", b"weights", type="model")
    with begat_warnings() as said:
        predict(one, callback(one, "told", model="mine:latest"), first)
    assert said == []
    assert models_of(one) == ["mine:v1"]


def test_a_checkpoint_that_begat_handed_out_is_known_without_an_id_inside(one: Kit) -> None:
    model = one.model()
    trainer = one.fit(model, enable_checkpointing=False)
    trainer.save_checkpoint("plain.ckpt")
    version = one.store.log_artifact("plain", "plain.ckpt", type="model")
    with begat_warnings() as said:
        predict(one, callback(one, "told"), first, ckpt_path=str(version.file))
    assert said == []
    assert models_of(one) == ["plain:v1"]


# --- where the rows are from ---


def test_rows_of_several_loaders_are_told_apart(kit: Kit) -> None:
    predict(kit, callback(kit, "told"), first, [rows(), rows(100)])
    told = table(kit.versions("told")[0])
    assert told["dataloader_idx"].to_pylist() == [0] * ROWS + [1] * ROWS
    assert told["id"].to_pylist() == [*range(ROWS), *range(ROWS)]
    assert told["pred"].to_pylist()[ROWS] == 100.0


def test_ids_are_those_of_the_dataset_whatever_their_order(kit: Kit) -> None:
    data = DataLoader(rows().dataset, batch_size=4, sampler=[5, 3, 1])
    predict(kit, callback(kit, "told"), first, data)
    told = table(kit.versions("told")[0])
    assert told["id"].to_pylist() == [5, 3, 1]
    assert told["pred"].to_pylist() == [5.0, 3.0, 1.0]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((4,), 7.0),)] * 3)


def test_rows_that_come_as_a_stream_are_numbered(one: Kit) -> None:
    # The second loader tells no numbers, and Lightning still has those of the first.
    loaders = [rows(), DataLoader(Stream(), batch_size=3)]
    predict(one, callback(one, "told"), first, loaders)
    assert table(one.versions("told")[0])["id"].to_pylist() == [*range(ROWS), 0, 1, 2]


class Files(Dataset[Any]):
    def __init__(self, root: Path) -> None:
        self.root = root

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (torch.full((4,), float((self.root / "n.txt").read_text())),)


def test_the_version_that_is_read_is_an_input(kit: Kit) -> None:
    Path("n.txt").write_text("3")
    data = kit.store.log_artifact("numbers", "n.txt", type="dataset")
    predict(kit, callback(kit, "told"), first, DataLoader(Files(data.path), batch_size=2))
    (version,) = kit.versions("told")
    assert version.metadata["datasets"] == ["numbers:v1"]
    assert version.produced_by is not None
    assert version.produced_by.inputs == (data,)


# --- what predict_step may return ---

Pair = namedtuple("Pair", ["label", "prediction"])
SCORES = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
PROBABILITIES = SCORES.softmax(1)

OUTPUTS: dict[str, tuple[Give, dict[str, Any], dict[str, Any]]] = {
    "a list": (lambda batch: ["a"] * len(batch), {}, {"pred": "a"}),
    "a tuple": (
        lambda batch: (first(batch), torch.ones(len(batch), 2), first(batch).long()),
        {},
        {"pred": 0.0, "prob": [1.0, 1.0], "label": 0},
    ),
    "a named tuple": (
        lambda batch: Pair(first(batch), first(batch) + 1),
        {},
        {"pred": 1.0, "label": 0.0},
    ),
    "a dict": (
        lambda batch: {"preds": first(batch), "ids": [f"row-{int(n)}" for n in first(batch)]},
        {},
        {"pred": 0.0, "id": "row-0"},
    ),
    "a dict of other keys": (
        lambda batch: {"loss": 1.0, "out": first(batch)},
        {"pred": "out", "label": lambda outputs, batch: batch[0][:, 1].long()},
        {"pred": 0.0, "label": 0},
    ),
    "a number in a tuple": (
        lambda batch: (None, first(batch)),
        {"pred": 1, "prob": lambda o, b: None},
        {"pred": 0.0},
    ),
    "vectors": (lambda batch: batch[:, :2], {}, {"pred": [0.0, 0.0]}),
    "logits": (
        lambda batch: SCORES[0].expand(len(batch), 2),
        {"reads_as": "logits"},
        {"pred": 1, "prob": pytest.approx(PROBABILITIES[0].tolist())},
    ),
    "logits of a half": (
        lambda batch: SCORES[0].expand(len(batch), 2).bfloat16(),
        {"reads_as": "logits"},
        {"pred": 1, "prob": pytest.approx(PROBABILITIES[0].tolist())},
    ),
    "logits of one class": (
        lambda batch: torch.full((len(batch), 1), 2.0),
        {"reads_as": "logits"},
        {"pred": 1, "prob": pytest.approx([0.880797])},
    ),
    "probabilities": (
        lambda batch: PROBABILITIES[1].expand(len(batch), 2),
        {"reads_as": "probabilities"},
        {"pred": 0, "prob": pytest.approx(PROBABILITIES[1].tolist())},
    ),
    "logits in a dict": (
        lambda batch: {"logits": SCORES[1].expand(len(batch), 2)},
        {"pred": "logits", "reads_as": "logits"},
        {"pred": 0},
    ),
}


@pytest.mark.parametrize(("give", "options", "row"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_any_kind(
    one: Kit, give: Give, options: dict[str, Any], row: dict[str, Any]
) -> None:
    predict(one, callback(one, "told", on_error="raise", **options), give)
    told = table(one.versions("told")[0]).to_pylist()
    assert len(told) == ROWS
    assert {name: told[0][name] for name in row} == row


REFUSED: dict[str, tuple[Give, dict[str, Any], str]] = {
    "no pred": (lambda batch: {"out": first(batch)}, {}, "the keys out"),
    "nothing": (lambda batch: None, {}, "returned nothing"),
    "another key": (lambda batch: {"out": first(batch)}, {"pred": "in"}, "without 'in'"),
    "one number": (lambda batch: first(batch).mean(), {}, "0 dimensions"),
    "of another length": (lambda batch: first(batch)[:1], {}, "rows"),
}


@pytest.mark.parametrize(("give", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_outputs_that_are_no_table_are_one_warning_and_no_version(
    one: Kit, give: Give, options: dict[str, Any], said: str
) -> None:
    with begat_warnings() as warned:
        predict(one, callback(one, "told", **options), give)
    assert one.versions("told") == []
    assert one.run().status == "finished"
    assert len([each for each in warned if said in each]) == 1
    with pytest.raises(BadInput, match=said):
        predict(one, callback(one, "told", on_error="raise", **options), give)


# --- trouble ---


def test_an_exception_leaves_no_version(kit: Kit, tmp_path: Path) -> None:
    def give(batch: Any) -> Any:
        return boom() if len(batch) < 4 else first(batch)

    with pytest.raises(Boom):
        predict(kit, callback(kit, "told"), give)
    assert kit.versions("told") == []
    assert kit.run().status == "failed"


def test_ctrl_c_leaves_no_version(kit: Kit) -> None:
    def give(batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return first(batch)

    with pytest.raises(SystemExit):
        predict(kit, callback(kit, "told"), give)
    assert kit.versions("told") == []
    assert kit.run().status == "interrupted"


def test_a_reference_that_does_not_exist_raises_before_the_first_batch(kit: Kit) -> None:
    seen: list[Any] = []
    with pytest.raises(ArtifactNotFound):
        predict(kit, callback(kit, "told", uses=["nothing"]), seen.append)
    with pytest.raises(ArtifactNotFound):
        predict(kit, callback(kit, "told", model="nothing"), seen.append)
    assert seen == []


def test_without_a_store_predicting_goes_on(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a store")
    seen: list[Any] = []
    with begat_warnings() as said:
        predict(
            kit,
            callback(kit, "told", store=tmp_path / "file"),
            lambda b: seen.append(b) or first(b),
        )
    assert len(seen) == 2
    assert len(said) == 1


# --- how much of it is kept in memory, and by how many processes it is made ---

SCRIPT = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
import torch
import {namespace} as pl
from {home} import PredictionCallback
from torch.utils.data import DataLoader, TensorDataset

def held():  # MiB of its own; pages of mapped files are the system's
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) >> 10

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def predict_step(self, batch, batch_idx): return STEP(self, batch, batch_idx)

common = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
"""


def run_script(code: str, namespace: str = "lightning.pytorch") -> subprocess.CompletedProcess[str]:
    script = Path("predict.py").absolute()
    path = [each for each in sys.path if each]
    prelude = SCRIPT.format(path=path, namespace=namespace, home=NAMESPACES[namespace])
    script.write_text(prelude + code)
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_of_many_predictions_few_are_kept_in_memory() -> None:
    done = run_script("""
def STEP(self, batch, batch_idx):
    self.held = [*getattr(self, "held", []), held()]
    return batch[0].long().flatten(), torch.rand(len(batch[0]), 16_384)  # 4 MiB

data = DataLoader(TensorDataset(torch.arange(10_240).unsqueeze(1)), batch_size=64)
model = Net()
pl.Trainer(devices=1, callbacks=[PredictionCallback("told")], **common).predict(model, data, return_predictions=False)
print(max(model.held) - model.held[4])
""")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 320  # MiB, of 640
    (version,) = begat.open_store().versions("told")
    assert parquet.ParquetFile(version.file).metadata.num_rows == 10_240


TWO = """
def STEP(self, batch, batch_idx):
    if FAILS and self.global_rank == 1 and batch_idx == 1: raise ZeroDivisionError
    return batch[0].flatten()

if __name__ == "__main__":
    data = DataLoader(TensorDataset(torch.arange(7).unsqueeze(1)), batch_size=2)
    ours = PredictionCallback("told", uses=["digits:latest"])
    trainer = pl.Trainer(strategy=STRATEGY, devices=2, callbacks=[ours], **common)
    trainer.predict(Net(), data, return_predictions=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("namespace", list(NAMESPACES))
def test_of_two_processes_each_writes_a_part_of_one_version(namespace: str) -> None:
    digits = begat.open_store().log_artifact("digits", b"0123")
    done = run_script("FAILS, STRATEGY = False, 'ddp'" + TWO, namespace)
    assert done.returncode == 0, done.stderr
    (version,) = begat.open_store().versions("told")
    parts = {entry.path: parquet.read_table(version.path / entry.path) for entry in version.entries}
    assert sorted(parts) == ["part-00000.parquet", "part-00001.parquet"]
    assert all(part["id"].to_pylist() == part["pred"].to_pylist() for part in parts.values())
    assert sorted(table(version)["id"].to_pylist()) == list(range(7))
    (run,) = begat.open_store().runs()
    assert run.inputs == (digits,)
    assert run.outputs == (version,)
    assert {json.loads(part.schema.metadata[b"begat"])["run"] for part in parts.values()} == {
        run.id
    }


@pytest.mark.slow
def test_if_one_of_two_processes_fails_there_is_no_version() -> None:
    begat.open_store().log_artifact("digits", b"0123")
    done = run_script("FAILS, STRATEGY = True, 'ddp'" + TWO)
    assert done.returncode != 0
    assert list(begat.open_store().artifacts(type="predictions")) == []
    assert begat.open_store().runs()[0].status in ("failed", "interrupted")


@pytest.mark.slow
def test_processes_that_are_spawned_write_their_parts() -> None:
    begat.open_store().log_artifact("digits", b"0123")
    done = run_script("FAILS, STRATEGY = False, 'ddp_spawn'" + TWO)
    assert done.returncode == 0, done.stderr
    (version,) = begat.open_store().versions("told")
    assert sorted(table(version)["id"].to_pylist()) == list(range(7))


@pytest.mark.slow
def test_if_one_of_two_processes_cannot_write_its_part_there_is_no_version() -> None:
    begat.open_store().log_artifact("digits", b"0123")
    code = TWO.replace("return batch[0].flatten()", "return batch[0].flatten()[self.global_rank:]")
    done = run_script("FAILS, STRATEGY = False, 'ddp'" + code)
    assert done.returncode == 0, done.stderr
    assert list(begat.open_store().artifacts(type="predictions")) == []
    assert [run.status for run in begat.open_store().runs()] == ["finished"]
