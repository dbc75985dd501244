"""What every test gets: a home, a store and a cache of its own, and none of the caller's environment."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# No deadline, and no complaint about slow examples: on a busy machine of two cores the time of one says nothing. In CI
# the examples are the same in every run, so a failure there is a failure here; elsewhere they are new each time.
hypothesis.settings.register_profile(
    "begat",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("begat")

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run joins or captures these, so a caller's value would change what a test sees.
CAPTURED = (
    "BEGAT_RUN_ID",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "BEGAT_CACHE_SIZE",
    "BEGAT_COMPRESSION",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the user's is read or written: the folder that holds this test's home, store, cache and work folder.

    It stands beside `tmp_path`, which therefore starts empty.
    """
    place = tmp_path_factory.mktemp("isolated")
    for name in ("home", "work"):
        (place / name).mkdir()
    # Not the fixture `monkeypatch`: a test may undo what it did there, and is to stay here.
    with pytest.MonkeyPatch.context() as patched:
        for name in [*CAPTURED, *(name for name in os.environ if name.startswith("GIT_"))]:
            patched.delenv(name, raising=False)
        patched.setenv("HOME", str(place / "home"))
        patched.setenv("BEGAT_STORE", str(place / "store"))
        patched.setenv("BEGAT_CACHE", str(place / "cache"))
        patched.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patched.chdir(place / "work")
        yield place
