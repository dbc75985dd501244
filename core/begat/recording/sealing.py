"""Predictions on their way into one version; made by `Recorder.predictions`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from begat import files
from begat.model import Json
from begat.recording.ending import Ending
from begat.recording.predictions import PredictionWriter
from begat.removing import remove_tree
from begat.version import Version

_DOING = "recording the predictions"


class Predictions:
    """Tables that are written while they are made, in a folder of their own, and become one version.

    `facts` are what each table says of itself. A table that lacks a batch is worth nothing: after one that could not be
    written, nothing more is written and no version is made. The folder goes when the recorder ends. Where nothing is
    recorded, nothing is done and `folder` is None.
    """

    def __init__(
        self,
        recorder: Ending,
        facts: Mapping[str, Json],
        *,
        names_run: bool,
        above: str | os.PathLike[str] | None,
    ) -> None:
        self.folder: Path | None = None
        known = {name: value for name, value in facts.items() if value not in (None, [])}
        run = {"run": recorder.run.id} if names_run and recorder.run is not None else {}
        self.facts: dict[str, Any] = {**run, **known}
        self._metadata = known
        self._recorder = recorder
        self._writers: dict[str, PredictionWriter] = {}
        self._is_whole = True
        if recorder.is_recording:
            recorder.at_end(self._remove)
            with recorder.guarded(_DOING):
                self.folder = files.temporary_directory("begat-predictions-", above=above)

    def write(self, *, output: str = "", **columns: Any) -> None:
        """Add a batch to the table of one of the model's outputs, as `PredictionWriter.write` does."""
        if self.folder is None or not self._recorder.is_recording or not self._is_whole:
            return
        self._is_whole = False
        with self._recorder.guarded(_DOING):
            if output not in self._writers:
                self._writers[output] = PredictionWriter(self.folder / output, **self.facts)
            self._writers[output].write(**columns)
            self._is_whole = True

    def store(self, name: str, *, metadata: Mapping[str, Json] | None = None) -> Version | None:
        """Make a version of all that is in the folder; None if nothing is, or if that failed."""
        run = self._recorder.run
        if self.folder is None or run is None or not self._recorder.is_recording:
            return None
        with self._recorder.guarded(_DOING):
            for writer in self._writers.values() if self._is_whole else ():
                writer.close()
            if self._is_whole and os.listdir(self.folder):
                facts = {**self._metadata, **(metadata or {})}
                return run.log_artifact(name, self.folder, type="predictions", metadata=facts)
        return None

    def _remove(self) -> None:
        for writer in self._writers.values():
            writer.abort()
        if self.folder is not None:
            remove_tree(self.folder)
