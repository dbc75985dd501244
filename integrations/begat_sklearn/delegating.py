"""An estimator that does what the one inside it does, once that is fitted."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUntypedBaseClass=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted


def _delegates(method: str) -> Callable[[Any], bool]:
    def has_method(tracked: Any) -> bool:
        return hasattr(tracked.__dict__.get("estimator_", tracked.estimator), method)

    return has_method


class DelegatingEstimator(MetaEstimatorMixin, BaseEstimator):
    """Offers what `estimator` can do, done by `estimator_`, the fitted one; what it cannot do is no attribute."""

    estimator: Any
    estimator_: Any

    @available_if(_delegates("predict"))
    def predict(self, X: Any, **params: Any) -> Any:
        """What the fitted estimator predicts."""
        return self._fitted().predict(X, **params)

    @available_if(_delegates("predict_proba"))
    def predict_proba(self, X: Any, **params: Any) -> Any:
        """The fitted estimator's probabilities, a column for each of `classes_`."""
        return self._fitted().predict_proba(X, **params)

    @available_if(_delegates("decision_function"))
    def decision_function(self, X: Any, **params: Any) -> Any:
        """The fitted estimator's decision values."""
        return self._fitted().decision_function(X, **params)

    @available_if(_delegates("transform"))
    def transform(self, X: Any, **params: Any) -> Any:
        """What the fitted estimator makes of X."""
        return self._fitted().transform(X, **params)

    @available_if(_delegates("score"))
    def score(self, X: Any, y: Any = None, **params: Any) -> float:
        """The fitted estimator's score."""
        return self._fitted().score(X, y, **params)

    def __getattr__(self, name: str) -> Any:
        # Scorers and searches ask for classes_ and the like, which scikit-learn names with a final underscore.
        if name.endswith("_") and not name.startswith("_") and "estimator_" in self.__dict__:
            return getattr(self.__dict__["estimator_"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return "estimator_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.estimator_
