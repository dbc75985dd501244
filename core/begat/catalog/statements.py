"""Statements that go to SQLite past SQLAlchemy, whose own way costs ten times what SQLite does for a row.

SQLAlchemy writes them, once; the driver runs them. Values are text, integers and bytes, which need no conversion.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ClauseElement, Connection, Dialect, Table
from sqlalchemy.dialects.sqlite import insert as insert
from sqlalchemy.sql.compiler import SQLCompiler

_CHUNK = 500

Item = TypeVar("Item")


class Prepared:
    """A statement that is compiled once; its values are parameters, given by name.

    A list is one value (`is_among_many`): the text is always the same. Rows are plain tuples.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._text = ""
        self._names: list[str] = []  # of the parameters, in the order of the text
        self._constants: dict[str, object] = {}
        self._converted: dict[str, Callable[[Any], object]] = {}

    def all(self, connection: Connection, **given: object) -> list[tuple[Any, ...]]:
        """Every row."""
        return self._run(connection, given).fetchall()

    def each(self, connection: Connection, **given: object) -> Iterator[tuple[Any, ...]]:
        """Every row, one at a time: where records are made of thousands, those rows never live at once.

        The garbage collector would go through them again and again.
        """
        return self._run(connection, given)

    def first(self, connection: Connection, **given: object) -> tuple[Any, ...] | None:
        """The first row; None if there is none."""
        return self._run(connection, given).fetchone()

    def value(self, connection: Connection, **given: object) -> Any:
        """The first value of the first row; None if there is none."""
        row = self._run(connection, given).fetchone()
        return None if row is None else row[0]

    def change(self, connection: Connection, **given: object) -> int:
        """How many rows were changed."""
        return self._run(connection, given).rowcount

    def _run(self, connection: Connection, given: Mapping[str, object]) -> sqlite3.Cursor:
        if not self._text:
            self._compile(connection.dialect)
        values = {**self._constants, **given}
        for name, convert in self._converted.items():
            values[name] = convert(values[name])
        return send(connection, self._text, [values[name] for name in self._names])

    def _compile(self, dialect: Dialect) -> None:
        compiled = self._statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        assert "POSTCOMPILE" not in compiled.string, "a text that depends on its values"
        names = compiled.positiontup or []
        for name in names:
            parameter = compiled.binds[name]
            if not parameter.required:
                self._constants[name] = parameter.value
            convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None:
                self._converted[name] = convert
        self._names = list(names)
        self._text = compiled.string


def insert_many(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> int:
    """Insert rows (values in the order of the table's columns) whose key is not there yet; how many were inserted."""
    if not rows:
        return 0
    text = _inserts.get(table.name)
    if text is None:
        quote = connection.dialect.identifier_preparer.quote
        names = ", ".join(quote(column.name) for column in table.columns)
        marks = ", ".join("?" * len(table.columns))
        text = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        _inserts[table.name] = text
    return send(connection, text, rows, is_many=True).rowcount


_inserts: dict[str, str] = {}  # by the table's name


def send(
    connection: Connection, text: str, values: Sequence[Any] = (), *, is_many: bool = False
) -> sqlite3.Cursor:
    """Have the driver run a statement, or run it for each of many rows; all that goes past SQLAlchemy goes by here."""
    driver = driver_of(connection)
    return driver.executemany(text, values) if is_many else driver.execute(text, values)


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The connection that SQLAlchemy has wrapped; what happens on it belongs to the same transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def chunks(items: Iterable[Item]) -> Iterator[Sequence[Item]]:
    """The items in lists short enough for the parameters of one statement."""
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
