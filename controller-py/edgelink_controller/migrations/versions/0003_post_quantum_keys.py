"""Post-quantum keys of nodes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("machines", schema=None) as batch_op:
        batch_op.add_column(sa.Column("node_key_kem", sa.String(length=1580), nullable=True))


def downgrade() -> None:
    # The signature covers the key: without it the rest is of no use until the machine signs in again.
    op.execute("UPDATE machines SET node_key_signature = NULL WHERE node_key_kem IS NOT NULL")
    with op.batch_alter_table("machines", schema=None) as batch_op:
        batch_op.drop_column("node_key_kem")
