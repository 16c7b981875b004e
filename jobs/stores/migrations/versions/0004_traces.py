"""A job belongs to a trace."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs that are there have none."""
    op.execute("ALTER TABLE jobs ADD COLUMN trace TEXT NOT NULL DEFAULT ''")


def downgrade() -> None:
    """Take it away."""
    op.execute("ALTER TABLE jobs DROP COLUMN trace")
