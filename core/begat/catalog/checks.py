"""What can be wrong with a catalog as a whole: its file, and facts that contradict each other."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Connection, create_engine, func, select

from begat.tables import METADATA, artifacts, blobs, edges, holds, objects, runs, versions

_MAX_SHOWN = 20


def problems(connection: Connection) -> list[str]:
    """Each problem as a sentence, the file's own first; at most 20 of a kind."""
    found: list[str] = []
    for row in connection.exec_driver_sql(f"PRAGMA integrity_check({_MAX_SHOWN})"):
        if row[0] != "ok":
            found.append(f"the catalog's file is damaged: {row[0]}")
    if _schema_of(connection) != _schema_as_made():
        found.append("the catalog's file is damaged: its tables are not those that begat makes")
    return found + _numbers(connection) + _dangling(connection)


def _schema_of(connection: Connection) -> list[tuple[object, ...]]:
    """All that SQLite understands of tables, columns and indexes."""
    found: list[tuple[object, ...]] = []
    for table in connection.exec_driver_sql("PRAGMA main.table_list").all():
        name = table[1]
        found += [tuple(table), *_rows(connection, f"PRAGMA table_xinfo({name!r})")]
        for index in connection.exec_driver_sql(f"PRAGMA index_list({name!r})").all():
            # Their order is that in which they were made, and indexes of keys are named after it.
            title = "" if index[1].startswith("sqlite_") else index[1]
            parts = _rows(connection, f"PRAGMA index_xinfo({index[1]!r})")
            found.append((name, title, *index[2:], *parts))
    return sorted(found, key=repr)


def _rows(connection: Connection, statement: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.exec_driver_sql(statement)]


@cache
def _schema_as_made() -> list[tuple[object, ...]]:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            METADATA.create_all(connection, checkfirst=False)
            return _schema_of(connection)
    finally:
        engine.dispose()


def _numbers(connection: Connection) -> list[str]:
    highest = func.coalesce(func.max(versions.c.number), 0)
    kept = func.max(versions.c.number).filter(versions.c.state != "deleted")
    statement = (
        select(artifacts.c.name, func.count(versions.c.uid), artifacts.c.last_number)
        .select_from(artifacts.outerjoin(versions, versions.c.artifact_uid == artifacts.c.uid))
        .group_by(artifacts.c.uid)
        .having(
            (func.count(versions.c.uid) != artifacts.c.last_number)
            | (highest != artifacts.c.last_number)
            | kept.is_distinct_from(artifacts.c.latest_number)
        )
        .order_by(artifacts.c.name)
        .limit(_MAX_SHOWN)
    )
    return [
        f"{name!r} has {count} versions, and the last number it gave is {last}: one is missing"
        for name, count, last in connection.execute(statement)
    ]


def _dangling(connection: Connection) -> list[str]:
    found: list[str] = []
    for what, column, target in (
        ("blobs lie in the object", blobs.c.object, objects.c.name),
        ("a version needs the object", holds.c.object, objects.c.name),
        ("an edge leads to the version", edges.c.version_uid, versions.c.uid),
        ("an edge comes from the run", edges.c.run_uid, runs.c.uid),
    ):
        known = select(target).where(target == column).correlate(column.table).exists()
        statement = select(column).distinct().where(~known).order_by(column).limit(_MAX_SHOWN)
        found += [
            f"{what} {row[0]!r}, which the catalog does not know"
            for row in connection.execute(statement)
        ]
    return found
