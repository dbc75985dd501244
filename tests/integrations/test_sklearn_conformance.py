"""begat_sklearn keeps the promises that every integration makes, in both its ways."""

# scikit-learn ships no types, and what is guessed from its defaults is wrong.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from begat.testing import BATCHES, CallbackTests, Training
from begat_sklearn import ArtifactFitCallback, TrackedEstimator

# The ends of a fit are tested beside each of the two, where what is expected is no checkpoint.
NO_CHECKPOINTS = "scikit-learn saves nothing while it fits; the model is logged once, at the end"
CANNOT: dict[str, str] = dict.fromkeys(
    (
        "test_a_batch_costs_no_call",
        "test_each_checkpoint_is_a_version",
        "test_a_checkpoint_tells_when_it_was_saved_and_how_good_it_is",
        "test_best_follows_the_framework",
        "test_what_the_framework_removes_is_retired",
        "test_with_keep_all_nothing_is_retired",
        "test_a_path_that_is_overwritten_is_a_version_each_time",
        "test_two_that_save_at_once_are_kept_apart",
        "test_a_training_that_goes_on_from_a_checkpoint_has_used_its_version",
        "test_a_run_that_goes_on_from_what_it_made_has_made_and_used_it",
        "test_a_pickled_callback_records_like_the_one_it_was",
        "test_an_exception_fails_the_run",
        "test_ctrl_c_interrupts_the_run",
        "test_an_exception_fails_the_run_around_the_training",
        "test_an_exception_that_ends_the_process_fails_the_run",
        "test_ctrl_c_that_ends_the_process_interrupts_the_run",
        "test_what_a_kill_left_is_stored_by_sync",
        "test_a_store_that_cannot_be_written_is_one_warning_and_the_run_says_what_is_missing",
        "test_a_store_that_cannot_be_written_raises_where_that_is_wanted",
        "test_a_store_that_is_away_for_a_while_loses_nothing",
        "test_the_end_does_not_wait_longer_than_it_may",
        "test_a_checkpoint_that_is_removed_before_it_is_taken_in_is_missed",
        "test_a_checkpoint_that_is_rewritten_while_it_is_taken_in_is_missed",
    ),
    NO_CHECKPOINTS,
)


class Stepwise(BaseEstimator):
    """Fits step by step, and comes to something else each time."""

    training: Training  # of the class: no parameter, and no part of the model

    def fit(self, X: Any, y: Any = None) -> Stepwise:
        for epoch in range(self.training.epochs):
            for batch in range(BATCHES):
                self.training.act(epoch, batch)
        self.weight_ = float(np.random.default_rng().random())
        return self


class Rows(np.ndarray):
    """Numbers that know where they were read."""

    root: str


def rows(training: Training) -> Any:
    if training.data is None:
        return np.arange(64.0).reshape(-1, 1)
    text = Path(training.data, "rows.txt").read_text()
    read = np.array(text.split(), float).reshape(-1, 1).view(Rows)
    read.root = str(training.data)
    return read


class TestTrackedEstimator(CallbackTests):
    package = "begat_sklearn"
    needs = ("sklearn",)
    install = '"begat[sklearn]"'
    cannot: ClassVar = CANNOT

    def callback(self, name: str, **options: Any) -> Any:
        return partial(TrackedEstimator, name=name, **options)

    def train(self, training: Training, *callbacks: Any) -> None:
        Stepwise.training = training
        (wrapped,) = callbacks
        model = wrapped(make_pipeline(Stepwise())).fit(rows(training))
        self.save(training, model.estimator_[-1])

    def save(self, training: Training, fitted: Any) -> None:
        """As the user would, where the training is one that saves."""
        if training.saves:
            training.folder.mkdir(exist_ok=True)
            np.save(training.folder / "weight.npy", fitted.weight_)


@pytest.mark.skipif(find_spec("sklearn.callback") is None, reason="scikit-learn 1.9 has callbacks")
class TestArtifactFitCallback(TestTrackedEstimator):
    def callback(self, name: str, **options: Any) -> Any:
        return ArtifactFitCallback(name, **options)

    def train(self, training: Training, *callbacks: Any) -> None:
        Stepwise.training = training
        model = make_pipeline(Stepwise()).set_callbacks(*callbacks).fit(rows(training))
        self.save(training, model[-1])
