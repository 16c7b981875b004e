"""Workers say that they are there."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CHANGES = """
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    until DOUBLE PRECISION NOT NULL,
    told TEXT NOT NULL
);
"""

BACK = "DROP TABLE workers;"


def upgrade() -> None:
    """An empty table: workers fill it within seconds."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Nothing of it is needed."""
    op.execute(BACK)
