"""What the shell offers after Tab: names, references and runs of the store that is meant.

The scripts that ask for it are typer's, but bash's is ours: bash takes the `:` of `digits:v3` for the end of a word.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from typing import Literal

import typer

from begat.cli.opened import opened, settings_of
from begat.cli.output import say
from begat.errors import BegatError

MOST_RUNS = 30

Offer = tuple[str, str]
Shell = Literal["bash", "zsh", "fish", "powershell"]

VARIABLE = "_BEGAT_COMPLETE"  # how a shell's script says that it asks

# Bash replaces what follows the last of its word breaks, and those are the same for all commands: so the whole word is
# asked about, and what bash leaves standing is taken off the answers.
BASH_SCRIPT = """\
_begat_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" words word breaks kept="" IFS=$' \\t\\n'
    read -ra words <<< "$line."  # the dot stands for a word that is still empty
    IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="$line" COMP_CWORD=$(( ${#words[@]} - 1 )) \\
                   _BEGAT_COMPLETE=complete_bash "$1" 2>/dev/null ) )
    word="${line##*[[:space:]]}"
    [[ "$word" == --*=* ]] && word="${word#*=}"
    breaks="${COMP_WORDBREAKS//[^:=@]/}"
    [ -n "$breaks" ] && kept="${word%"${word##*["$breaks"]}"}"
    COMPREPLY=( "${COMPREPLY[@]#"$kept"}" )
}

complete -o default -F _begat_completion begat"""


def get_ready() -> None:
    """Let typer answer a shell's script, if one asks."""
    if os.environ.get(VARIABLE):
        from typer.completion import (
            completion_init,  # pyright: ignore[reportPrivateImportUsage]
        )

        completion_init()


def show_script(shell: Shell | None) -> None:
    """`--show-completion SHELL`: print the script that a shell is to read."""
    if shell is None:
        return
    say(_script_of(shell))
    raise typer.Exit


def install_script(shell: Shell | None) -> None:
    """`--install-completion SHELL`: put the script where the shell reads it at its next start."""
    if shell is None:
        return
    from typer.completion import install  # pyright: ignore[reportPrivateImportUsage]

    from begat.files import replace_with, told_as

    with told_as(f"installing completion for {shell}"):
        _, path = install(shell, "begat", VARIABLE)
        if shell == "bash":
            replace_with(path, f"{BASH_SCRIPT}\n".encode())
    say(f"completion for {shell} is in {path}; it works in every shell that is started from now on")
    raise typer.Exit


def _script_of(shell: Shell) -> str:
    if shell == "bash":
        return BASH_SCRIPT
    from typer.completion import (
        get_completion_script,  # pyright: ignore[reportPrivateImportUsage]
    )

    return get_completion_script(prog_name="begat", complete_var=VARIABLE, shell=shell)


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
    """References, and the newest runs: by id, or by name once something of it is typed."""
    offers: list[Offer] = []
    with _quietly(context), opened(context) as store:
        records = store.catalog.runs.list(limit=MOST_RUNS)
        offers += [(record.uid, record.name) for record in records]
        names = Counter(record.name for record in records)
        offers += [(name, "a run") for name, count in names.items() if incomplete and count == 1]
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
