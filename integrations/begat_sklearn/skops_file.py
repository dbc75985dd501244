"""A fitted estimator as a file: written by skops, with bytes that depend on the estimator alone."""

# scikit-learn and skops ship no types; what comes from them is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import io
import json
from pathlib import PurePosixPath
from typing import Any, cast
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import skops.io

from begat.errors import BadInput


def bytes_of_estimator(estimator: object) -> bytes:
    """The estimator as a skops file; equal estimators give equal bytes, in any process.

    skops names objects by their address in memory and stamps members with the time, so two files of one estimator
    differ. Here objects are numbered as they appear. Without this no fit could ever confirm an earlier version, and
    whatever was made from the model would be stale after each new fit. Sets of text are the exception: Python orders
    them anew in each process.
    """
    written = ZipFile(io.BytesIO(skops.io.dumps(estimator)))
    numbering = _Numbering()
    schema = numbering.apply(json.loads(written.read("schema.json")))
    out = io.BytesIO()
    with ZipFile(out, "w", ZIP_STORED) as target:
        for old, new in numbering.files.items():
            target.writestr(ZipInfo(new), written.read(old))
        target.writestr(ZipInfo("schema.json"), json.dumps(schema, indent=1))
    return out.getvalue()


class _Numbering:
    """Numbers for skops's object ids and file names, in the order in which the schema names them."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._numbers: dict[int, int] = {}
        self._count = 0

    def apply(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.apply(item) for item in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        fields = cast("dict[str, Any]", node)
        if fields.get("__class__") == "<lambda>":
            raise BadInput(
                "the model holds a lambda, so nothing could load it again; use a function that is defined in a module"
            )
        out: dict[str, Any] = {}
        for key, value in fields.items():
            if key == "__id__":
                out[key] = self._number(value, is_shared=fields.get("__loader__") != "JsonNode")
            elif key == "file" and isinstance(value, str):
                out[key] = self.files.setdefault(value, self._file(value))
            else:
                out[key] = self.apply(value)
        return out

    def _number(self, id: int, *, is_shared: bool) -> int:
        # Whether two equal texts or numbers are one object is chance; they cannot be changed, so each stands alone.
        if is_shared and id in self._numbers:
            return self._numbers[id]
        self._count += 1
        if is_shared:
            self._numbers[id] = self._count
        return self._count

    def _file(self, name: str) -> str:
        return f"{len(self.files) + 1}{PurePosixPath(name).suffix}"
