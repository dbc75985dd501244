"""Trainings in two processes on gloo: one of them commits, both end, and nobody waits for what never comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import begat
from begat.errors import ArtifactNotFound

pytestmark = pytest.mark.slow

PRELUDE = """
import os, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
import {namespace} as pl
from {integration} import ArtifactCallback

ModelCheckpoint = pl.callbacks.ModelCheckpoint

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def training_step(self, batch, batch_idx):
        Path(f"rank-{{self.global_rank}}").write_text(os.environ.get("BEGAT_RUN_ID", ""))
        return self.layer(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

loader = DataLoader(TensorDataset(torch.ones(16, 4)), batch_size=4)
common = dict(accelerator="cpu", devices=2, max_epochs=2, logger=False, enable_progress_bar=False,
              enable_model_summary=False)
"""


def train(code: str, *, namespace: str = "lightning.pytorch") -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, which starts the second one itself."""
    integration = {
        "lightning.pytorch": "begat_lightning.unified",
        "pytorch_lightning": "begat_lightning.pl",
    }[namespace]
    prelude = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    script = Path("train.py").absolute()
    script.write_text(prelude + PRELUDE.format(namespace=namespace, integration=integration) + code)
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


FIT = """
trainer = pl.Trainer(strategy="ddp", callbacks=[ModelCheckpoint(dirpath="out", save_top_k=-1),
                     ArtifactCallback("net", uses=["digits:latest"])], **common)
trainer.fit(Net(), loader)
"""


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_of_two_processes_one_commits_and_both_are_in_its_run(namespace: str) -> None:
    store = begat.open_store()
    digits = store.log_artifact("digits", b"0123")
    done = train(FIT, namespace=namespace)
    assert done.returncode == 0, done.stderr
    (run,) = store.runs()
    assert run.status == "finished"
    assert run.inputs == (digits,)
    assert [version.metadata["step"] for version in run.outputs] == [2, 4]
    assert [Path(f"rank-{rank}").read_text() for rank in range(2)] == [run.id, run.id]


def test_of_processes_that_are_spawned_one_commits() -> None:
    store = begat.open_store()
    digits = store.log_artifact("digits", b"0123")
    indented = FIT.replace('"ddp"', '"ddp_spawn"').replace("\n", "\n    ")
    done = train(f'if __name__ == "__main__":{indented}')
    assert done.returncode == 0, done.stderr
    (run,) = store.runs()
    assert run.status == "finished"
    assert run.inputs == (digits,)
    assert [version.metadata["step"] for version in run.outputs] == [2, 4]


def test_a_reference_that_does_not_exist_ends_both_processes() -> None:
    store = begat.open_store()
    done = train(FIT)
    assert done.returncode != 0
    assert ArtifactNotFound.__name__ in done.stderr
    assert store.runs() == []
    assert not Path("rank-1").exists()


def test_a_checkpoint_that_both_processes_write_is_one_version_of_all_its_files() -> None:
    done = train(
        """
from torch.distributed.fsdp import fully_shard
from {0}.strategies import ModelParallelStrategy

class Sharded(Net):
    def configure_model(self):
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

if __name__ == "__main__":
    trainer = pl.Trainer(strategy=ModelParallelStrategy(2, 1, process_group_backend="gloo"),
                         callbacks=[ModelCheckpoint(dirpath="out"), ArtifactCallback("net")], **common)
    trainer.fit(Sharded(), loader)
""".replace("{0}", "lightning.pytorch")
    )
    assert done.returncode == 0, done.stderr
    first, second = begat.open_store().versions("net")
    (folder,) = Path("out").iterdir()
    assert folder.is_dir()
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {entry.path: second.read_bytes(entry.path) for entry in second.files()} == written
    assert len(written) > 2
    assert (first.state, second.state) == ("retired", "live")
