"""Jobs stand in lines: places, limits of pipelines, and parts that used up their attempts."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHANGES = """
ALTER TABLE jobs ADD COLUMN line TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN held BOOLEAN;
UPDATE jobs SET line = 'queue:' || (plan::json -> 'stages' -> 0 ->> 'queue');
CREATE INDEX jobs_waiting ON jobs (line, priority DESC, created, id) WHERE status = 'accepted';
CREATE INDEX jobs_started ON jobs (line, started) WHERE started IS NOT NULL;
CREATE INDEX jobs_limited ON jobs (line, held) WHERE held IS NOT NULL AND finished IS NULL;
CREATE INDEX parts_dead ON parts (ended_at) WHERE state = 'dead';
"""

BACK = """
DROP INDEX parts_dead;
DROP INDEX jobs_limited;
DROP INDEX jobs_started;
DROP INDEX jobs_waiting;
ALTER TABLE jobs DROP COLUMN held;
ALTER TABLE jobs DROP COLUMN line;
"""


def upgrade() -> None:
    """Add them; jobs that are there stand in the line of their first stage's queue."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Take them away. Jobs that are held back by a limit would stay so: end them first."""
    op.execute(BACK)
