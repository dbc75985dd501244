"""How many bytes of a version's files were in the store before it.

Revision 0002. Of versions that are there already, what they did not add counts as shared.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_CHECKED = (
    *("created_at", "root", "record", "description", "metadata", "entry_metadata_digest"),
    *("size_bytes", "new_bytes", "file_count", "created_by", "origin_store", "origin_uid"),
)


def upgrade() -> None:
    column = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
    op.add_column("versions", sa.Column("shared_bytes", column, nullable=True))
    op.execute(
        "UPDATE versions SET shared_bytes = "
        "CASE WHEN size_bytes > new_bytes THEN size_bytes - new_bytes ELSE 0 END"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("versions_check", "versions", if_exists=True)
        op.create_index("versions_check", "versions", [*_CHECKED, "shared_bytes"])
