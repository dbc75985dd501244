import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Connection,
    Integer,
    LargeBinary,
    Text,
    create_engine,
    create_mock_engine,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from begat.tables import HEAD, METADATA, REVISIONS, migrations


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def schema_of(connection: Connection) -> dict[str, tuple[object, ...]]:
    """Name -> everything that SQLite knows of a table or an index."""
    found: dict[str, tuple[object, ...]] = {}
    listed = connection.exec_driver_sql("PRAGMA table_list").all()
    for row in listed:
        name = row[1]
        if name.startswith("sqlite_"):
            continue
        columns = connection.exec_driver_sql(f"PRAGMA table_xinfo({name})").all()
        found[name] = (tuple(row[2:]), *(tuple(column) for column in columns))
        for index in connection.exec_driver_sql(f"PRAGMA index_list({name})"):
            # Unnamed indexes (of keys) are numbered in the order they are written down; their columns name them.
            parts = connection.exec_driver_sql(f"PRAGMA index_info({index[1]})").all()
            names = tuple(part[2] for part in parts)
            title = "" if index[1].startswith("sqlite_") else index[1]
            found[f"{name}({','.join(names)}){title}"] = tuple(index[2:])
    return found


def test_migrations_give_the_very_schema_that_a_new_store_gets(connection: Connection):
    migrations.upgrade(connection)
    walked = schema_of(connection)
    engine = create_engine("sqlite://")
    with engine.begin() as fresh:
        migrations.create(fresh)
        made = schema_of(fresh)
    engine.dispose()
    assert walked == made
    assert len(made) > 30  # tables and indexes were really compared


def test_every_migration_can_be_walked_one_by_one(connection: Connection):
    for revision in REVISIONS:
        migrations.upgrade(connection, revision=revision)
        noted = connection.exec_driver_sql("SELECT version_num FROM schema_version").all()
        assert [tuple(row) for row in noted] == [(revision,)]


def test_of_versions_that_were_there_before_0002_what_they_did_not_add_is_shared(
    connection: Connection,
):
    migrations.upgrade(connection, revision="0001")
    for number, (size, new) in enumerate([(100, 30), (5, 700)], start=1):
        row = {"uid": f"v{number}", "artifact_uid": "a", "number": number, "token": f"t{number}"}
        row |= {"digest": "", "root": "", "metadata": "{}", "entry_metadata_digest": ""}
        row |= {"size_bytes": size, "new_bytes": new, "file_count": 1, "state": "live"}
        row |= {"created_at": 1, "created_by": ""}
        marks = ", ".join(f":{name}" for name in row)
        connection.execute(text(f"INSERT INTO versions ({', '.join(row)}) VALUES ({marks})"), row)
    migrations.upgrade(connection)
    found = connection.exec_driver_sql("SELECT uid, shared_bytes FROM versions ORDER BY uid").all()
    assert [tuple(row) for row in found] == [("v1", 70), ("v2", 0)]
    assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_the_known_revisions_are_those_in_the_folder():
    script = ScriptDirectory.from_config(migrations.alembic_config())
    walked = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(walked)) == REVISIONS
    assert script.get_current_head() == HEAD


def test_a_new_store_is_at_the_newest_revision(connection: Connection):
    migrations.create(connection)
    assert connection.exec_driver_sql("SELECT * FROM schema_version").scalar() == HEAD


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=lambda table: table.name)
def test_columns_are_text_integers_or_bytes_only(table):
    assert {type(column.type) for column in table.columns} <= {Text, Integer, LargeBinary}


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=lambda table: table.name)
def test_postgresql_sorts_text_by_bytes_and_has_64_bits_in_an_integer(table):
    made = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    columns = [line.strip() for line in made.splitlines() if line.startswith("\t")]
    columns = [line for line in columns if not line.startswith(("PRIMARY", "UNIQUE"))]
    assert len(columns) == len(table.columns)
    assert all('TEXT COLLATE "C"' in line or "BIGINT" in line for line in columns)


def test_every_table_is_strict(connection: Connection):
    migrations.create(connection)
    listed = connection.exec_driver_sql("PRAGMA table_list").all()
    ours = {row[1]: row[5] for row in listed if row[1] in METADATA.tables}
    assert set(ours) == set(METADATA.tables)
    assert set(ours.values()) == {1}


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=lambda table: table.name)
def test_each_column_lies_in_an_index_which_the_integrity_check_compares_with_it(
    table, connection: Connection
):
    migrations.create(connection)
    covered: set[str] = set()
    for index in connection.exec_driver_sql(f"PRAGMA index_list({table.name})").all():
        # The key of a table in the order of its key is that table, and no second copy of it.
        if table.dialect_options["sqlite"]["with_rowid"] or index[3] != "pk":
            parts = connection.exec_driver_sql(f"PRAGMA index_xinfo({index[1]})").all()
            covered |= {part[2] for part in parts}
    assert {column.name for column in table.columns} <= covered


def test_postgresql_gets_no_index_over_text_of_any_length():
    """It has checksums of pages, and refuses a row of an index that is longer than a third of one."""
    made: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://",
        lambda ddl, *_: made.append(str(ddl.compile(dialect=engine.dialect))),
    )
    METADATA.create_all(engine, checkfirst=False)
    indexes = [text for text in made if "CREATE INDEX" in text]
    assert len(indexes) > 15
    long = ("detail", "metadata", "description", "params", "git", "environment")
    assert [text for text in indexes if any(name in text for name in long)] == []


def test_a_value_of_another_type_is_refused(tmp_path: Path):
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(tmp_path / "a.sqlite"))
    with engine.begin() as connection:
        migrations.create(connection)
    engine.dispose()
    with sqlite3.connect(tmp_path / "a.sqlite") as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute("INSERT INTO objects VALUES ('a', 'not a number', 'live', 1)")
    raw.close()
