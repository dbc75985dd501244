"""Which artifact a path of MLflow's lies in: each run, logged model and trace is one artifact of begat.

    begat://digits/mlflow/<run id>/artifacts/plots/a.png       plots/a.png in digits/mlflow/<run id>
    begat://digits/mlflow/models/m-<id>/artifacts/MLmodel      MLmodel in digits/mlflow/models/m-<id>
    begat://digits:v3/train.csv                                train.csv in a version, for reading only

MLflow opens repositories above, at and below the root of a run, so only the whole path tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "begat://"

# The ids are those that MLflow makes: 32 hex digits, with a prefix for models and traces.
_ROOT = re.compile(
    r"(?P<name>(?:.+/)?(?:(?P<run>[0-9a-f]{32})|models/(?P<model>m-[0-9a-f]{32})|traces/(?P<trace>tr-[^/]+)))"
    r"/artifacts(?:/(?P<inside>.*))?\Z"
)
# What selects a version stands in one segment: `digits:v3`, `digits@b3:9f31c0`.
_VERSION = re.compile(r"(?P<ref>[^:@]+[:@][^/]+)(?:/(?P<inside>.*))?\Z")


@dataclass(frozen=True, slots=True)
class Location:
    """A path inside the newest version of an artifact, or inside the one version that `ref` names.

    `owner` is the id of the MLflow run, model or trace, empty for a place that is none of these.
    """

    ref: str
    inside: str
    owner: str = ""
    is_pinned: bool = False

    @property
    def type(self) -> str:
        """The type of the artifact that is made here: a logged model is a model."""
        return "model" if self.owner.startswith("m-") else "mlflow"


def joined(root: str, path: str | None) -> str:
    """The whole path of something below a root."""
    return "/".join(part.strip("/") for part in (root, path or "") if part.strip("/"))


def locate(root: str, path: str | None) -> Location:
    """Where a path below a repository's root lies."""
    whole = joined(root, path)
    if (found := _VERSION.match(whole)) is not None:
        return Location(found["ref"], found["inside"] or "", is_pinned=True)
    if (found := _ROOT.match(whole)) is not None:
        owner = found["run"] or found["model"] or found["trace"]
        return Location(found["name"], found["inside"] or "", owner)
    return Location(root.strip("/"), joined("", path))
