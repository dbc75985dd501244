"""Real trainings on data that begat handed out: the run has used what was really read, declared or not."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

import begat
from begat.errors import BegatWarning
from begat.model import Edge

CALLBACKS = {
    "lightning.pytorch": "begat_lightning.unified",
    "pytorch_lightning": "begat_lightning.pl",
}
Fit = Callable[..., list[str]]


class Rows(Dataset[torch.Tensor]):
    """Rows of a text file below `root`, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        values = (self.root / "rows.txt").read_text().split()
        return torch.tensor([float(values[index])])


class Stream(IterableDataset[torch.Tensor]):
    """Rows that come from nobody knows where."""

    def __iter__(self) -> Any:
        return iter(torch.ones(4, 1))


def _model(pl: Any, act: Any) -> Any:
    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if act is not None:
                act()
            rows = next(iter(batch.values())) if isinstance(batch, dict) else batch
            return self.layer(rows).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Net()


def _fit(namespace: str, data: Any, *, act: Any = None, **options: Any) -> list[str]:
    """Train for one epoch on loaders or a datamodule; what begat warned of meanwhile."""
    pl: Any = importlib.import_module(namespace)
    callback = importlib.import_module(CALLBACKS[namespace]).ArtifactCallback("net", **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(_model(pl, act), data)
    return [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]


@pytest.fixture(params=list(CALLBACKS))
def fit(request: pytest.FixtureRequest) -> Fit:
    return lambda data, **options: _fit(request.param, data, **options)


@pytest.fixture
def fit_once() -> Fit:
    """Under one of the names, where what is tested lies below both."""
    return lambda data, **options: _fit("lightning.pytorch", data, **options)


@pytest.fixture
def first() -> begat.Version:
    return _rows("1 2 3 4")


@pytest.fixture
def second(first: begat.Version) -> begat.Version:
    return _rows("5 6 7 8")


def _rows(text: str) -> begat.Version:
    Path("rows.txt").write_text(text)
    return begat.open_store().log_artifact("rows", "rows.txt", type="dataset")


def loader(data: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=2)


def edges() -> dict[str, Edge]:
    """Version -> edge, of the newest run."""
    store = begat.open_store()
    (run,) = store.runs(limit=1)
    return {store.catalog.versions.get(edge.version_uid).ref: edge for edge in run.edges}


def test_reading_the_declared_version_is_detected_and_no_warning(
    fit: Fit, first: begat.Version
) -> None:
    assert fit(loader(Rows(first.path)), uses=["rows:latest"]) == []
    (edge,) = edges().values()
    assert (edge.is_declared, edge.is_detected, edge.mismatch) == (True, True, None)
    assert edge.requested == "rows:latest"


def test_reading_another_version_than_declared_is_one_warning_and_both_are_recorded(
    fit: Fit, first: begat.Version, second: begat.Version
) -> None:
    (said,) = fit(loader(Rows(first.path)), uses=["rows:latest"])
    text = "declared rows:v2 (as rows:latest), but the training data comes from rows:v1"
    assert said.startswith(text)
    declared, read = edges()["rows:v2"], edges()["rows:v1"]
    assert (declared.is_declared, declared.is_detected, declared.mismatch) == (True, False, text)
    assert (read.is_declared, read.is_detected, read.role) == (False, True, "train")
    (run,) = begat.open_store().runs()
    assert run.status == "finished"
    assert first.consumed_by == (run,)


def test_data_that_nobody_handed_out_is_not_recorded_and_no_warning(
    fit: Fit, first: begat.Version
) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/rows.txt").write_text("1 2 3 4")
    assert fit(loader(Rows(Path("elsewhere"))), uses=["rows:v1"]) == []
    (edge,) = edges().values()
    assert (edge.is_detected, edge.mismatch) == (False, None)


def test_what_is_read_is_recorded_before_the_first_batch_and_by_reading_nothing(
    fit_once: Fit, first: begat.Version
) -> None:
    data, seen = Rows(first.download("mine")), list[Any]()
    fit_once(loader(data), act=lambda: seen.append(first.consumed_by))
    assert seen[0] != ()
    assert sorted(data.asked) == [0, 1, 2, 3]


def test_parts_of_datasets_joined_are_looked_into(
    fit_once: Fit, first: begat.Version, second: begat.Version
) -> None:
    joined = ConcatDataset([Subset(Rows(first.path), [0, 1]), Subset(Rows(second.path), [2])])
    assert fit_once(loader(joined), uses=["rows:v2"]) == []
    assert {ref: edge.is_declared for ref, edge in edges().items()} == {
        "rows:v2": True,
        "rows:v1": False,
    }
    assert all(edge.is_detected for edge in edges().values())


def test_of_several_loaders_all_are_looked_at(
    fit_once: Fit, first: begat.Version, second: begat.Version
) -> None:
    fit_once({"a": loader(Rows(first.path)), "b": loader(Rows(second.path))})
    assert set(edges()) == {"rows:v1", "rows:v2"}


@pytest.mark.parametrize("is_hyperparameter", [False, True])
def test_where_the_loader_tells_nothing_the_datamodule_is_asked(
    fit: Fit, request: pytest.FixtureRequest, first: begat.Version, is_hyperparameter: bool
) -> None:
    pl: Any = importlib.import_module(request.node.callspec.params["fit"])

    class Module(pl.LightningDataModule):
        def __init__(self, data_dir: str) -> None:
            super().__init__()
            if is_hyperparameter:
                self.save_hyperparameters()
            else:
                self.data_dir = data_dir

        def train_dataloader(self) -> Any:
            return loader(Stream())

    assert fit(Module(str(first.path))) == []
    assert [(ref, edge.is_detected) for ref, edge in edges().items()] == [("rows:v1", True)]


def test_what_the_datamodule_tells_of_other_data_is_no_input_where_the_loader_tells(
    fit_once: Fit, first: begat.Version, second: begat.Version
) -> None:
    pl: Any = importlib.import_module("lightning.pytorch")

    class Module(pl.LightningDataModule):
        reference_dir = first.path

        def train_dataloader(self) -> Any:
            return loader(Rows(second.path))

    assert fit_once(Module(), uses=["rows:v2"]) == []
    assert list(edges()) == ["rows:v2"]


def test_a_dataset_whose_attributes_fight_back_trains_as_without_begat(
    fit_once: Fit, first: begat.Version
) -> None:
    class Hostile(Rows):
        def __init__(self, root: Path) -> None:
            super().__init__(root)
            self.files = ["elsewhere"] * 1_000_000

        @property
        def path(self) -> str:
            raise RuntimeError("nobody may ask for this")

        @property
        def samples(self) -> Any:
            raise KeyboardInterrupt

    assert fit_once(loader(Hostile(first.path)), on_error="raise") == []
    assert edges()["rows:v1"].is_detected


TWO_RANKS = """
import sys; sys.path[:0] = {path!r}
import torch, begat
import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset
from begat_lightning.unified import ArtifactCallback

class Rows(Dataset):
    def __init__(self, root): self.root = root
    def __len__(self): return 4
    def __getitem__(self, index): return torch.ones(1)

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx): return self.layer(batch).square().mean()
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.01)

trainer = pl.Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=1, logger=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                     callbacks=[ArtifactCallback("net", uses=["rows:latest"])])
trainer.fit(Net(), DataLoader(Rows(begat.get_artifact("rows:v1").path)))
"""


@pytest.mark.slow
def test_of_two_processes_one_records_and_warns(
    first: begat.Version, second: begat.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("train.py").write_text(TWO_RANKS.format(path=[path for path in sys.path if path]))
    command = [sys.executable, "-W", "ignore", "-W", "always:declared", "train.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("but the training data comes from rows:v1") == 1
    assert {ref: edge.is_detected for ref, edge in edges().items()} == {
        "rows:v2": False,
        "rows:v1": True,
    }
