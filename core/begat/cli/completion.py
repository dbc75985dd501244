"""What the shell offers after Tab: names, references and runs of the store that is meant."""

from __future__ import annotations

import contextlib
import warnings

import typer

from begat.cli.opened import opened, settings_of
from begat.errors import BegatError

MOST_RUNS = 30

Offer = tuple[str, str]


def offer_names(context: typer.Context, incomplete: str) -> list[Offer]:
    """Names of artifacts, each with its type."""
    offers: list[Offer] = []
    with _quietly(context), opened(context) as store:
        offers += [(record.name, record.type) for record in store.artifacts()]
    return _fitting(offers, incomplete)


def offer_references(context: typer.Context, incomplete: str) -> list[Offer]:
    """Names of artifacts; after `digits:` its numbers, aliases and labels, the newest first."""
    name, colon, _ = incomplete.partition(":")
    if not colon:
        return offer_names(context, incomplete)
    offers: list[Offer] = []
    with _quietly(context), opened(context) as store:
        for record in reversed(store.catalog.versions.list(name)):
            labels = [*(("latest",) if record.is_latest else ()), *record.aliases]
            labels += [record.version] if record.version else []
            offers.append((record.ref, ", ".join(labels)))
            offers += [(f"{name}:{label}", record.ref) for label in labels]
    return _fitting(offers, incomplete)


def offer_references_and_runs(context: typer.Context, incomplete: str) -> list[Offer]:
    """References, and the ids of the newest runs."""
    offers: list[Offer] = []
    with _quietly(context), opened(context) as store:
        records = store.catalog.runs.list(limit=MOST_RUNS)
        offers += [(record.uid, record.name) for record in records]
    return [*offer_references(context, incomplete), *_fitting(offers, incomplete)]


@contextlib.contextmanager
def _quietly(context: typer.Context):
    """Whatever goes wrong while somebody types is told when the command runs."""
    # The options before the command were parsed, but the command line itself has not run yet.
    settings_of(context).store = context.find_root().params.get("store")
    with contextlib.suppress(BegatError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fitting(offers: list[Offer], incomplete: str) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(incomplete)]
