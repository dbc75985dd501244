"""What proves that an integration keeps its promises: suites that run for anybody's.

    from begat.testing import CallbackTests, Training

    class TestMyFramework(CallbackTests):
        ...                                   see `CallbackTests` for what to fill in

Needs pytest, from the first name that is used here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from begat.errors import MissingExtra

if TYPE_CHECKING:
    from begat.testing.callbacks import CallbackTests
    from begat.testing.scene import Boom, Scene
    from begat.testing.training import BATCHES, Saves, Training

__all__ = ["BATCHES", "Boom", "CallbackTests", "Saves", "Scene", "Training"]

_HOMES = {
    "BATCHES": "training",
    "Boom": "scene",
    "CallbackTests": "callbacks",
    "Saves": "training",
    "Scene": "scene",
    "Training": "training",
}

_ASSERTING = ("callbacks", "checkpoints", "ends", "inputs", "scene", "trouble")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'begat.testing' has no attribute {name!r}")
    try:
        pytest = import_module("pytest")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "begat.testing needs pytest, which is not installed: pip install pytest"
        ) from error
    # So that a failure shows the values that were compared.
    asserting = [f"{__name__}.{module}" for module in _ASSERTING]
    pytest.register_assert_rewrite(*(each for each in asserting if each not in sys.modules))
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
