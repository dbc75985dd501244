"""The conformance suite of callbacks: what an integration promises, as scenarios with real trainings."""

from __future__ import annotations

import inspect

from begat.testing.checkpoints import CheckpointScenarios
from begat.testing.ends import EndScenarios
from begat.testing.inputs import InputScenarios
from begat.testing.trouble import TroubleScenarios


class CallbackTests(InputScenarios, CheckpointScenarios, EndScenarios, TroubleScenarios):
    """A subclass is a test class that pytest collects. It fills in:

    package, needs, install   `"begat_keras"`, `("keras",)`, `'"begat[keras]"'`
    callback(name, **options)  the integration's callback
    train(training, *callbacks)  a real training, as `Training` describes it
    cannot   what this framework can have no such thing of: the scenario's name, and why

    Its module is imported by child processes too, by its path, so it must not rely on fixtures while it is imported.
    """

    def test_what_is_declared_impossible_are_scenarios_with_a_reason(self) -> None:
        scenarios = dict(inspect.getmembers(CallbackTests, inspect.isfunction))
        for name, reason in self.cannot.items():
            assert name.startswith("test_"), name
            assert name in scenarios, f"there is no scenario {name}"
            assert reason.strip(), f"{name}: why not?"
