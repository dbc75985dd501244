"""Trainings of `Trainer` under torchrun in two processes on gloo: one commits, both end, and nobody waits in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import begat
from begat.errors import ArtifactNotFound

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
sys.path[:0] = {path!r}
import os, time
import torch
from pathlib import Path
from tiny_trainer import Kit, Net, Rows
from begat_transformers import ArtifactCallback, log_predictions

rank = int(os.environ["RANK"])
kit = Kit(Path("out"))
options = dict(ddp_backend="gloo", num_train_epochs=2, save_total_limit=1)
{code}
torch.distributed.barrier()
Path(f"ended-{{rank}}").touch()
# Now and then a thread of gloo ends a process that is ending ("terminate called without an active exception").
os._exit(0)
"""


def torchrun(code: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes, as a user of transformers would."""
    path = [place for place in sys.path if place]
    Path("train.py").write_text(SCRIPT.format(path=path, code=code))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    return subprocess.run(
        [sys.executable, "-W", "ignore", *launcher],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_of_two_processes_one_commits_whole_checkpoints_and_predictions() -> None:
    store = begat.open_store()
    digits = store.log_artifact("digits", b"0123")
    done = torchrun("""
trainer = kit.trainer(ArtifactCallback("net", uses=["digits:latest"]), **options)
save = trainer._save_rng_state
trainer._save_rng_state = lambda folder: (time.sleep(rank), save(folder))  # the last file of rank 1 is late
trainer.train()
log_predictions(trainer.predict(Rows()))
""")
    assert done.returncode == 0, done.stderr
    predicting, training = store.runs()
    assert (training.status, predicting.status) == ("finished", "finished")
    assert training.inputs == (digits,)
    first, second = store.versions("net")
    assert (first.state, second.state) == ("retired", "live")
    files = {entry.path for entry in second.files()}
    assert files == {path.name for path in Path(second.metadata["path"]).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files
    assert [version.metadata["rows"] for version in predicting.outputs] == [8]
    assert predicting.inputs == (second,)


def test_a_callback_that_only_one_process_has_hangs_nobody() -> None:
    done = torchrun("""
trainer = kit.trainer(*([ArtifactCallback("net")] if rank == 0 else []), **options)
trainer.train()
""")
    assert done.returncode == 0, done.stderr
    assert len(begat.open_store().versions("net")) == 2


def test_a_reference_that_does_not_exist_ends_both_processes() -> None:
    done = torchrun("""
trainer = kit.trainer(ArtifactCallback("net", uses=["digits:latest"]), **options)
trainer.train()
""")
    assert done.returncode != 0
    assert ArtifactNotFound.__name__ in done.stderr
    assert begat.open_store().runs() == []  # a typo leaves no run behind
    assert not list(Path().glob("ended-*"))
