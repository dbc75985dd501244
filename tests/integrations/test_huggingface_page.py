"""The example runs as a user would run it, and the page's blocks about the Hub do what they say, on loopback.

Both are processes of their own with HF_ENDPOINT in their environment, as a user has it; test_docs.py runs the rest of
the page.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import begat
from loopback_hub import TOKEN, LoopbackHub

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hugging-face.md"


def run(code: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    paths = os.pathsep.join(str(ROOT / name) for name in ("core", "integrations"))
    return subprocess.run(
        [sys.executable, *code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **kept,
            "PYTHONPATH": paths,
            "PYTHONWARNINGS": "error::UserWarning",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        check=False,
    )


def test_the_page_pushes_and_pulls(tmp_path: Path, isolated: Path) -> None:
    first, push, pull = blocks("python")[0], *blocks("py")
    with LoopbackHub.running() as hub:
        access = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        pushed = run(["-c", f"{first}\n{push}"], tmp_path, **access)
        assert pushed.returncode == 0, pushed.stderr
        repo = hub.repo("me/reviews")
        assert repo.private
        last = pushed.stdout.splitlines()[-1]
        assert last == f"v1 {hub.url}/datasets/me/reviews/commit/{repo.head}"
        elsewhere = {**access, "BEGAT_STORE": str(isolated / "another-store")}
        pulled = run(["-c", pull], tmp_path, **elsewhere)
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stdout == f"reviews:v1 True {repo.head[:7]}\n"
        again = run(["-c", pull], tmp_path, **elsewhere)
        assert again.stdout == f"reviews:v1 False {repo.head[:7]}\n"
        assert TOKEN not in pushed.stdout + pushed.stderr + pulled.stdout + pulled.stderr


def blocks(language: str) -> list[str]:
    found = re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    return found


def test_the_example_says_what_it_did(tmp_path: Path) -> None:
    example = ROOT / "examples" / "digits_huggingface.py"
    done = run([str(example), "out"], tmp_path, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, "")
    saved, trained, grown, stale, detected = done.stdout.splitlines()
    assert (saved, grown) == ("saved digits:v1", "saved digits:v2")
    assert trained.startswith("trained on ['digits:v1'] 0.")
    assert stale == "stale: digits-score:v1 was made from digits:v1; digits:latest is now digits:v2"
    assert detected.startswith("detected ['digits:v2'] 0.")
    with begat.open_store(tmp_path / "out" / "store") as store:
        newest = store.runs(job="train-digits")[0]
        [edge] = newest.edges
        assert (edge.is_declared, edge.is_detected, edge.mismatch) == (False, True, None)
        assert store.verify().damaged == ()


def test_the_example_has_few_lines_of_begat() -> None:
    text = (ROOT / "examples" / "digits_huggingface.py").read_text("utf-8")
    names = r"begat|_dataset\(|recorder|run\."
    assert len([line for line in text.splitlines() if re.search(names, line)]) <= 20
