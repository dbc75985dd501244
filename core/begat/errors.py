"""Everything that can go wrong, as one tree, grouped by what a handler would do.

    BegatError
    ├── NotFound (KeyError)      ask for something else
    │   ├── ArtifactNotFound
    │   ├── VersionNotFound
    │   ├── RunNotFound
    │   ├── VersionDeleted
    │   └── BytesRetired
    ├── Refused                  the store said no; nothing was changed
    │   ├── VersionExists
    │   ├── AliasMoved
    │   ├── AliasReserved
    │   ├── TypeMismatch
    │   ├── FormatTooNew
    │   ├── ReadOnly
    │   ├── AccessDenied
    │   ├── RunFinished
    │   └── DestinationDiffers (FileExistsError)
    ├── BadInput (ValueError)    mend what was given
    │   ├── BadReference
    │   ├── AmbiguousReference
    │   ├── BadName
    │   ├── BadPath
    │   ├── BadMetadata
    │   ├── UnsupportedFile
    │   ├── SourceChanged
    │   ├── RemoteChanged
    │   └── LimitExceeded
    ├── Corrupt                  stored bytes are not what they were; restore or log them again
    │   ├── DigestMismatch
    │   ├── ObjectMissing
    │   └── ManifestUnreadable
    ├── Unavailable              try again later
    │   ├── CatalogBusy
    │   ├── StoreUnavailable
    │   └── StoreFull
    └── MissingExtra (ImportError)   install what is named

A message says what happened, to which value, that nothing was lost (or what was), and what to do next.
Misuse by a programmer (a wrong type, a missing argument) is a plain `TypeError`.
"""

import sys
import warnings

__all__ = [
    "AccessDenied",
    "AliasMoved",
    "AliasReserved",
    "AmbiguousReference",
    "ArtifactNotFound",
    "BadInput",
    "BadMetadata",
    "BadName",
    "BadPath",
    "BadReference",
    "BegatError",
    "BegatWarning",
    "BytesRetired",
    "CatalogBusy",
    "Corrupt",
    "DestinationDiffers",
    "DigestMismatch",
    "FormatTooNew",
    "LimitExceeded",
    "ManifestUnreadable",
    "MissingExtra",
    "NotFound",
    "ObjectMissing",
    "ReadOnly",
    "Refused",
    "RemoteChanged",
    "RunFinished",
    "RunNotFound",
    "SourceChanged",
    "StoreFull",
    "StoreUnavailable",
    "TypeMismatch",
    "Unavailable",
    "UnsupportedFile",
    "VersionDeleted",
    "VersionExists",
    "VersionNotFound",
    "warn",
]


class BegatWarning(UserWarning):
    """Something was done differently from what was asked, and work goes on."""


def warn(text: str, *, through: tuple[str, ...] = ()) -> None:
    """Warn with a `BegatWarning` that names the line which called begat or an integration, however deep this is called.

    An integration is known by its name: a package `begat_<framework>`. `through` are other packages to look through for
    the line of the user.
    """
    inner = ("begat", "contextlib", *through)
    frame, level = sys._getframe(1), 2  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in inner and not package.startswith("begat_"):
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(text, BegatWarning, stacklevel=level)


class BegatError(Exception):
    """Any failure of begat; the message says what happened and what to do next."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        # KeyError would print the repr of the message, quotes and escapes included.
        return self.message


class NotFound(BegatError, KeyError):
    """What was asked for is not in the store."""


class ArtifactNotFound(NotFound):
    """No artifact has this name."""


class VersionNotFound(NotFound):
    """The artifact has no version with this number, alias, label or digest."""


class RunNotFound(NotFound):
    """No run has this id."""


class VersionDeleted(NotFound):
    """The version was deleted; its place in the lineage is kept."""


class BytesRetired(NotFound):
    """The version is known, but its bytes were dropped by garbage collection."""


class Refused(BegatError):
    """The store said no, and changed nothing."""


class VersionExists(Refused):
    """The SemVer label belongs to another version already."""


class AliasMoved(Refused):
    """Compare-and-set failed: the alias is not where it was expected."""


class AliasReserved(Refused):
    """The alias is one that begat moves itself (`latest`), or holds a version that was to be deleted."""


class TypeMismatch(Refused):
    """The artifact is known with another type."""


class FormatTooNew(Refused):
    """The store or manifest was written by a newer begat."""


class ReadOnly(Refused):
    """The store cannot be written from here."""


class AccessDenied(Refused):
    """The operating system or the server denied access."""


class RunFinished(Refused):
    """The run is over; it can use and make nothing more."""


class DestinationDiffers(Refused, FileExistsError):
    """A file stands at the destination with other content."""


class BadInput(BegatError, ValueError):
    """What was given cannot be used; nothing was stored."""


class BadReference(BadInput):
    """The text is not a reference such as `digits:v3`."""


class AmbiguousReference(BadReference):
    """A digest prefix fits several versions with different content, or a name or beginning of an id several runs."""


class BadName(BadInput):
    """The text cannot name an artifact, an alias, a tag or a type."""


class BadPath(BadInput):
    """The path cannot be stored, because it could not be restored safely everywhere."""


class BadMetadata(BadInput):
    """The metadata is not JSON."""


class UnsupportedFile(BadInput):
    """Not a regular file, a folder or a link that can be kept (a socket, a device, a pipe)."""


class SourceChanged(BadInput):
    """A file changed while it was read."""


class RemoteChanged(BadInput):
    """A remote asset is no longer what was pinned."""


class LimitExceeded(BadInput):
    """More than begat accepts; the message names the limit."""


class Corrupt(BegatError):
    """Stored bytes are not what they were when they were stored."""


class DigestMismatch(Corrupt):
    """Bytes were read whose digest is not the recorded one; they were not handed out."""


class ObjectMissing(Corrupt):
    """An object that the catalog names is not in the object store."""


class ManifestUnreadable(Corrupt):
    """The manifest does not parse, or breaks a rule that every written manifest keeps."""


class Unavailable(BegatError):
    """Not possible at the moment; try again later."""


class CatalogBusy(Unavailable):
    """Other processes hold the catalog; the message names them where they are known."""


class StoreUnavailable(Unavailable):
    """The store cannot be reached or opened."""


class StoreFull(Unavailable):
    """No space is left for the store; what was stored before is safe."""


class MissingExtra(BegatError, ImportError):
    """A part of begat needs packages that are not installed; the message has the command."""
