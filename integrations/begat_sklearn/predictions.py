"""Predictions as one parquet file: a row for each sample, with what was known and what was foretold."""

# scikit-learn and pyarrow ship no types; what comes from them is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

PREDICTIONS_FILE = "predictions.parquet"
# Large enough to compress well, small enough to read a piece of a large table.
ROWS_PER_GROUP = 65_536


def parquet_of(
    ids: Any, labels: Any, predictions: Any, probabilities: Any, *, facts: dict[str, Any]
) -> bytes:
    """A parquet file with the columns `id`, `label`, `pred` and, where there are probabilities, `prob`.

    `label` is null where nothing was known. Rows of several values (several outputs, probabilities of classes) are
    lists of fixed size. `facts` is JSON in the file's own metadata, under the key `begat`.
    """
    count = len(predictions)
    columns = {
        "id": pa.array(np.arange(count) if ids is None else np.asarray(ids)),
        "label": pa.nulls(count) if labels is None else _column(np.asarray(labels)),
        "pred": _column(np.asarray(predictions)),
    }
    if probabilities is not None:
        columns["prob"] = _column(np.asarray(probabilities, dtype=np.float32))
    if labels is None:
        columns["label"] = columns["label"].cast(columns["pred"].type)
    table = pa.table(columns).replace_schema_metadata({"begat": json.dumps(facts)})
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return out.getvalue()


def _column(values: Any) -> Any:
    if values.ndim == 1:
        return pa.array(values)
    if values.ndim != 2:
        raise ValueError(f"a row has {values.ndim - 1} dimensions; a column of a table holds one")
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).ravel()), values.shape[1]
    )
