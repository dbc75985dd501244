"""With BEGAT_AUTOLOG=1 every Trainer has the callback, once; without it nothing of ours is even imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import begat

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]
PRELUDE = """
import sys; sys.path[:0] = {path!r}
import torch
import {namespace} as pl
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def training_step(self, batch, batch_idx): return self.layer(batch[0]).square().mean()
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.01)

def trainer(*callbacks):
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=list(callbacks))

loader = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder in which begat is installed as pyproject.toml says today, whenever this checkout was."""
    groups = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["entry-points"]
    info = tmp_path / "begat-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: begat\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())
        for group, entries in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(code: str, installed: Path, namespace: str, **environment: str) -> str:
    """What a script prints in which Lightning finds our entry points."""
    path = [str(installed), *(each for each in sys.path if each)]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            PRELUDE.format(path=path, namespace=namespace) + code,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FIT = "trainer().fit(Net(), loader)"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_fit_is_recorded(namespace: str, installed: Path) -> None:
    run(FIT, installed, namespace, BEGAT_AUTOLOG="1")
    store = begat.open_store()
    assert [job.job for job in store.runs()] == ["train-Net"]
    assert len(store.versions("Net")) == 1


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_callback_of_the_user_is_not_doubled(namespace: str, installed: Path) -> None:
    home = {"lightning.pytorch": "unified", "pytorch_lightning": "pl"}[namespace]
    for name in ("", '"mine"'):
        code = f"""
from begat_lightning.{home} import ArtifactCallback
one = trainer(ArtifactCallback({name}))
one.fit(Net(), loader)
one.save_checkpoint("after.ckpt")
"""
        run(code, installed, namespace, BEGAT_AUTOLOG="1")
    store = begat.open_store()
    assert [len(store.versions(name)) for name in ("Net", "mine")] == [2, 2]
    assert len(store.runs()) == 4


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("value", ["", "0"])
def test_unless_it_is_asked_for_nothing_is_added_or_imported(
    namespace: str, value: str, installed: Path
) -> None:
    other = {*NAMESPACES} - {namespace}
    code = f"""
assert "begat_lightning" not in sys.modules
trainer().fit(Net(), loader)
assert "begat_lightning.autolog" in sys.modules
ours = [name for name in sys.modules if name.startswith("begat")]
print(*ours, *({other!r} & sys.modules.keys()))
"""
    imported = run(code, installed, namespace, BEGAT_AUTOLOG=value).split()
    assert {*imported} == {"begat", "begat.errors", "begat_lightning", "begat_lightning.autolog"}
    assert not begat.open_store().runs()
