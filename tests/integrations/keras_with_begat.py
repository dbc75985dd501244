"""A plugin of pytest for Keras's own tests: our callback is in every list of callbacks."""

from typing import Any

from keras.src.callbacks import callback_list

from begat_keras import ArtifactCallback

_add_default_callbacks = callback_list.CallbackList._add_default_callbacks


def _add_ours_too(self: Any, *args: Any, **options: Any) -> None:
    _add_default_callbacks(self, *args, **options)
    self.callbacks.append(ArtifactCallback("upstream"))


callback_list.CallbackList._add_default_callbacks = _add_ours_too
