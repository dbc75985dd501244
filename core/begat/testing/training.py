"""What an integration is asked to train, in words that every framework can follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Steps of an epoch.
BATCHES = 4

# How the framework is to save, once at the end of each epoch:
# each     to a path of its own, and all of them stay
# same     to one path, over what is there
# newest   to a path of its own, and the framework removes the one before
# best     only what is the best by the lowest score so far, and the framework keeps no other (over it, or removing it)
Saves = Literal["each", "same", "newest", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training: small, real, on the CPU, with a model that changes in every step.

    folder   where checkpoints go; nothing else is written there
    epochs   how many, of `BATCHES` steps each; with `resume` those before it count
    saves    how it is to save; with several all at once, each to paths of its own
    scores   reported at the end of each epoch as the metric `score`, which decides what is the best; may be empty
    act      called in each step as `act(epoch, batch)`, both from 0, the way the user's own code would run
    resume   a checkpoint of an earlier training to go on from, as the framework resumes
    data     a folder with `rows.txt` to train on, numbers apart by blanks; the framework's object for data holds the
             path in an attribute (`root`). None: any data in memory
    """

    folder: Path
    epochs: int = 1
    saves: tuple[Saves, ...] = ()
    scores: tuple[float, ...] = ()
    act: Callable[[int, int], object] = lambda epoch, batch: None
    resume: Path | None = None
    data: Path | None = None
