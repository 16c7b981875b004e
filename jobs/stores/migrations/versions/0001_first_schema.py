"""The first schema: jobs with their stages, parts, events, and what hangs on them."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE guards (
    queue TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (queue)
);
CREATE TABLE jobs (
    id TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    status TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    updated DOUBLE PRECISION NOT NULL,
    started DOUBLE PRECISION,
    finished DOUBLE PRECISION,
    deadline DOUBLE PRECISION,
    kept_since DOUBLE PRECISION,
    version INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    stages TEXT NOT NULL,
    error TEXT,
    plan TEXT NOT NULL,
    params TEXT NOT NULL,
    input TEXT NOT NULL,
    labels TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    owner TEXT NOT NULL,
    deadline_s DOUBLE PRECISION,
    retry_of TEXT,
    family TEXT NOT NULL,
    folders TEXT NOT NULL,
    PRIMARY KEY (id)
)
 WITH (fillfactor = 75);
CREATE INDEX jobs_by_family ON jobs (family);
CREATE INDEX jobs_by_pipeline ON jobs (pipeline, created DESC, id DESC) INCLUDE (status);
CREATE INDEX jobs_by_status ON jobs (status, created DESC, id DESC);
CREATE INDEX jobs_kept ON jobs (kept_since) WHERE kept_since IS NOT NULL;
CREATE INDEX jobs_newest ON jobs (created DESC, id DESC);
CREATE INDEX jobs_with_deadline ON jobs (deadline) WHERE deadline IS NOT NULL AND finished IS NULL;
CREATE TABLE trash (
    name TEXT NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (name)
);
CREATE INDEX trash_oldest ON trash (since);
CREATE TABLE uploads (
    id TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION NOT NULL,
    upload TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX uploads_expiring ON uploads (expires);
CREATE TABLE artifacts (
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    job_id TEXT NOT NULL,
    stage SMALLINT NOT NULL,
    generation INTEGER NOT NULL,
    index INTEGER NOT NULL,
    name TEXT NOT NULL,
    artifact TEXT NOT NULL,
    PRIMARY KEY (number),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX artifacts_of_job ON artifacts (job_id, stage);
CREATE TABLE events (
    job_id TEXT NOT NULL,
    id INTEGER NOT NULL,
    time DOUBLE PRECISION NOT NULL,
    type TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (job_id, id),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE keys (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    digest TEXT NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (owner, key),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX keys_of_job ON keys (job_id);
CREATE TABLE labels (
    label TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (label, created, job_id),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX labels_of_job ON labels (job_id);
CREATE TABLE log_heads (
    job_id TEXT NOT NULL,
    lines INTEGER NOT NULL,
    PRIMARY KEY (job_id),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE parts (
    job_id TEXT NOT NULL,
    stage SMALLINT NOT NULL,
    generation INTEGER NOT NULL,
    index INTEGER NOT NULL,
    state TEXT NOT NULL,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    fence INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    rings INTEGER NOT NULL,
    at_once BOOLEAN NOT NULL,
    ready_at DOUBLE PRECISION NOT NULL,
    ring_due DOUBLE PRECISION NOT NULL,
    lease_until DOUBLE PRECISION,
    claimed_at DOUBLE PRECISION,
    ended_at DOUBLE PRECISION,
    token TEXT,
    worker TEXT,
    files TEXT NOT NULL,
    payload BYTEA,
    output BYTEA,
    error TEXT,
    ended_token TEXT,
    answer TEXT,
    PRIMARY KEY (job_id, stage, generation, index),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
)
 WITH (fillfactor = 75);
CREATE INDEX parts_later ON parts (ready_at) WHERE state = 'later';
CREATE INDEX parts_leased ON parts (token) WHERE state = 'leased';
CREATE INDEX parts_ready ON parts (task, ready_at) WHERE state IN ('unrung', 'rung');
CREATE INDEX parts_rung ON parts (queue, ring_due) WHERE state = 'rung';
CREATE INDEX parts_unrung ON parts (ring_due) WHERE state = 'unrung';
CREATE TABLE pins (
    job_id TEXT NOT NULL,
    upload_id TEXT NOT NULL,
    PRIMARY KEY (job_id, upload_id),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE,
    FOREIGN KEY(upload_id) REFERENCES uploads (id)
);
CREATE INDEX pins_of_upload ON pins (upload_id);
CREATE TABLE log_lines (
    job_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (job_id, number),
    FOREIGN KEY(job_id) REFERENCES log_heads (job_id) ON DELETE CASCADE
);
"""

NAMES = "log_lines, pins, parts, log_heads, labels, keys, events, artifacts, uploads, trash, jobs, guards"


def upgrade() -> None:
    """Make every table."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop them all, with every record."""
    op.execute(f"DROP TABLE {NAMES}")
