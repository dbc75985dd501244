"""An estimator that does what the one inside it does, once that is fitted."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUntypedBaseClass=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn import get_config
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

# Methods that can be given metadata such as sample weights; each is routed to the one of the same name.
ROUTED = (
    *("fit", "partial_fit", "fit_transform", "fit_predict", "predict", "predict_proba"),
    *("predict_log_proba", "decision_function", "transform", "inverse_transform", "score"),
)


def offers(*methods: str) -> Callable[[Any], bool]:
    """For `available_if`: whether the estimator inside has one of these methods."""

    def has_method(tracked: Any) -> bool:
        inside = tracked.__dict__.get("estimator_", tracked.estimator)
        return any(hasattr(inside, method) for method in methods)

    return has_method


def _delegated(name: str, doc: str) -> Any:
    def method(self: Any, X: Any, **params: Any) -> Any:
        return getattr(self._fitted(), name)(X, **self._routed(name, params))

    method.__name__, method.__qualname__ = name, f"DelegatingEstimator.{name}"
    method.__doc__ = doc
    return available_if(offers(name))(method)


class DelegatingEstimator(MetaEstimatorMixin, BaseEstimator):
    """Offers what `estimator` can do, done by `estimator_`, the fitted one; what it cannot do is no attribute."""

    estimator: Any
    estimator_: Any

    predict = _delegated("predict", "What the fitted estimator predicts.")
    predict_proba = _delegated("predict_proba", "Probabilities, a column for each of `classes_`.")
    predict_log_proba = _delegated("predict_log_proba", "The logarithms of the probabilities.")
    decision_function = _delegated("decision_function", "The fitted estimator's decision values.")
    score_samples = _delegated("score_samples", "The fitted estimator's score of each sample.")
    transform = _delegated("transform", "What the fitted estimator makes of X.")
    inverse_transform = _delegated("inverse_transform", "What X was before it was transformed.")

    @available_if(offers("score"))
    def score(self, X: Any, y: Any = None, **params: Any) -> float:
        """The fitted estimator's score."""
        return self._fitted().score(X, y, **self._routed("score", params))

    @available_if(offers("get_feature_names_out"))
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """The names of the columns that `transform` gives."""
        return self._fitted().get_feature_names_out(input_features)

    @available_if(offers("set_output"))
    def set_output(self, *, transform: Any = None) -> Any:
        """Choose the container that `transform` gives, as with the estimator itself; returns self."""
        for inside in (self.estimator, self.__dict__.get("estimator_")):
            if inside is not None:
                inside.set_output(transform=transform)
        return self

    def get_metadata_routing(self) -> Any:
        """What is routed to the estimator: whatever it asks for, in the method of the same name."""
        mapping = MethodMapping()
        for method in ROUTED:
            mapping.add(caller=method, callee=method)
        return MetadataRouter(owner=self).add(estimator=self.estimator, method_mapping=mapping)

    def __getattr__(self, name: str) -> Any:
        # Scorers and searches ask for classes_ and the like, which scikit-learn names with a final underscore.
        if name.endswith("_") and not name.startswith("_") and "estimator_" in self.__dict__:
            return getattr(self.__dict__["estimator_"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return "estimator_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        # Estimators of others need not be scikit-learn's BaseEstimator.
        is_tagged = hasattr(self.estimator, "__sklearn_tags__")
        return get_tags(self.estimator) if is_tagged else super().__sklearn_tags__()

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.estimator_

    def _routed(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The metadata that the estimator asks for; with routing switched off, all of it."""
        if not params or not get_config()["enable_metadata_routing"]:
            return params
        return process_routing(self, method, **params).estimator[method]
