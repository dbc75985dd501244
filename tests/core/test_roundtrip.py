"""What comes out is what went in: `download(log(d)) == d`, for trees of every kind that may be logged."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

import begat
from trees import MIB, Empty, File, Link, Tree, make, memory_folder, seen, trees

pytestmark = pytest.mark.filterwarnings(
    "ignore::begat.BegatWarning"
)  # names that Windows cannot keep

SHOWCASE: Tree = {
    "empty": File(0, 0),
    "run.sh": File(20, 1, is_executable=True),
    "twice": File(20, 1),
    "nothing": Empty(),
    "deep/nothing/at/all": Empty(),
    "to-file": Link("run.sh"),
    "to-folder": Link("deep"),
    "to-itself": Link("to-itself"),
    "deep/up": Link("../to-loop"),
    "to-loop": Link("deep/up"),
    "dangling": Link("not/there"),
    "n" * 255: File(10, 0),
    "/".join(["ä" * 127] * 8): File(10, 2),
    "/".join(["d"] * 256): File(10, 4),
    **{
        f"large/{size}.{seed}": File(size, seed)
        for size in (MIB - 1, MIB, MIB + 1)
        for seed in (0, 1)
    },
    "cut.bin": File(9 * MIB + 1, 2),
}


@settings(
    max_examples=100 if os.environ.get("CI") else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=trees())
@example(tree={})
@example(tree=SHOWCASE)
@example(tree={"/".join(["d"] * 256): Empty()})
def test_what_is_downloaded_is_what_was_logged(tmp_path: Path, tree: Tree) -> None:
    with memory_folder(tmp_path) as root, pytest.MonkeyPatch.context() as patched:
        patched.setenv("BEGAT_CACHE", str(root / "cache"))
        source = make(tree, root / "source")
        with begat.open_store(root / "store") as store:
            version = store.log_artifact("tree", source)
            expected = seen(source)
            assert seen(version.download(root / "copy")) == expected
            assert seen(version.path) == expected
            # What was downloaded is the same content in every respect that counts.
            again = store.log_artifact("tree", root / "copy")
            assert not again.is_new
            assert again.digest == version.digest
            assert store.log_artifact("tree", version.path).digest == version.digest
            assert version.verify() == ()
