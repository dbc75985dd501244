"""Keras 3 with begat: what a model writes while it is fitted becomes versions."""
