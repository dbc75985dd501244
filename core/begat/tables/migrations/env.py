"""What Alembic runs for each command; the connection, in its transaction, comes from `migrations.upgrade`."""

from alembic import context

from begat.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table="schema_version",
    # SQLite alters a table by copying it; on other databases this changes nothing.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
