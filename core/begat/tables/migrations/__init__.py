"""Bring a catalog from an older schema to the one of this begat.

Alembic does it, run from here and never by its command line, and is imported only when there is something to do.
A new revision is a file in `versions/` and an entry in `tables.REVISIONS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from begat.tables import HEAD, METADATA, schema_version

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection


def create(connection: Connection) -> None:
    """Make all tables in an empty database at once, and note the revision; the way of a new store."""
    METADATA.create_all(connection, checkfirst=False)
    connection.execute(schema_version.insert().values(version_num=HEAD))


def upgrade(connection: Connection, *, revision: str = HEAD) -> None:
    """Walk the migrations up to a revision, inside the transaction that the connection is in."""
    from alembic import command

    schema_version.create(connection, checkfirst=True)
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def alembic_config() -> Config:
    """What Alembic needs to know to find the revisions."""
    from alembic.config import Config

    config = Config()
    # Alembic would read a percent sign in the path as the start of a variable.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
