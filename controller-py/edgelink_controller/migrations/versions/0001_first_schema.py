"""The first schema"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_table(
        "audit_logs",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("actor_type", sa.String(length=50), nullable=False),
        sa.Column("actor_id", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("target_type", sa.String(length=50), nullable=False),
        sa.Column("target_id", sa.String(length=255), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("ip_address", sa.String(length=45), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_logs")),
    )
    with op.batch_alter_table("audit_logs", schema=None) as batch_op:
        batch_op.create_index("ix_audit_logs_created_at", ["created_at"], unique=False)

    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("network_id", sa.Integer(), nullable=True),
        sa.Column("entity", sa.String(length=20), nullable=False),
        sa.Column("entity_id", sa.Integer(), nullable=False),
        sa.Column("machine_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(length=50), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.create_index("ix_changes_machine_id", ["machine_id"], unique=False)

    op.create_table(
        "issued_tokens",
        sa.Column("jti", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("jti", name=op.f("pk_issued_tokens")),
    )
    with op.batch_alter_table("issued_tokens", schema=None) as batch_op:
        batch_op.create_index("ix_issued_tokens_expires_at", ["expires_at"], unique=False)
        batch_op.create_index("ix_issued_tokens_subject", ["kind", "subject"], unique=False)

    op.create_table(
        "latency_records",
        sa.Column("src_type", sa.String(length=10), nullable=False),
        sa.Column("src_id", sa.Integer(), nullable=False),
        sa.Column("dst_type", sa.String(length=10), nullable=False),
        sa.Column("dst_id", sa.Integer(), nullable=False),
        sa.Column("rtt_ms", sa.Float(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("src_type", "src_id", "dst_type", "dst_id", name=op.f("pk_latency_records")),
    )
    op.create_table(
        "login_failures",
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address", "account", name=op.f("pk_login_failures")),
    )
    op.create_table(
        "machines",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("machine_key", sa.String(length=44), nullable=False),
        sa.Column("node_key", sa.String(length=44), nullable=True),
        sa.Column("node_key_created", sa.BigInteger(), nullable=True),
        sa.Column("node_key_signature", sa.String(length=88), nullable=True),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("os", sa.String(length=50), nullable=False),
        sa.Column("arch", sa.String(length=50), nullable=False),
        sa.Column("version", sa.String(length=50), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_machines")),
        sa.UniqueConstraint("machine_key", name=op.f("uq_machines_machine_key")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "networks",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("subnet4", sa.String(length=18), nullable=False),
        sa.Column("subnet6", sa.String(length=43), nullable=False),
        sa.Column("reserved", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_networks")),
        sa.UniqueConstraint("name", name=op.f("uq_networks_name")),
        sa.UniqueConstraint("subnet6", name=op.f("uq_networks_subnet6")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "revisions",
        sa.Column("network_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("network_id", name=op.f("pk_revisions")),
    )
    op.create_table(
        "servers",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("type", sa.String(length=10), nullable=False),
        sa.Column("region", sa.String(length=50), nullable=False),
        sa.Column("capabilities", sa.String(length=100), nullable=False),
        sa.Column("data_url", sa.String(length=255), nullable=True),
        sa.Column("mesh_url", sa.String(length=255), nullable=True),
        sa.Column("stun", sa.String(length=255), nullable=True),
        sa.Column("stun_secondary", sa.String(length=255), nullable=True),
        sa.Column("tls_pin", sa.String(length=80), nullable=True),
        sa.Column("reported_data_url", sa.String(length=255), nullable=True),
        sa.Column("reported_mesh_url", sa.String(length=255), nullable=True),
        sa.Column("reported_stun", sa.String(length=255), nullable=True),
        sa.Column("reported_tls_pin", sa.String(length=80), nullable=True),
        sa.Column("version", sa.String(length=50), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("last_heartbeat", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servers")),
        sa.UniqueConstraint("name", name=op.f("uq_servers_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "settings",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "token_blacklist",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("jti", sa.String(length=64), nullable=True),
        sa.Column("subject_id", sa.Integer(), nullable=True),
        sa.Column("before", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_blacklist")),
    )
    with op.batch_alter_table("token_blacklist", schema=None) as batch_op:
        batch_op.create_index("ix_token_blacklist_expires_at", ["expires_at"], unique=False)
        batch_op.create_index("ix_token_blacklist_subject", ["kind", "subject_id"], unique=False)

    op.create_table(
        "node_endpoints",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("machine_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["machine_id"], ["machines.id"], name=op.f("fk_node_endpoints_machine_id_machines"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_endpoints")),
        sa.UniqueConstraint("machine_id", "kind", "address", name=op.f("uq_node_endpoints_machine_id_kind_address")),
    )
    with op.batch_alter_table("node_endpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_endpoints_machine_id"), ["machine_id"], unique=False)

    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("machine_id", sa.Integer(), nullable=False),
        sa.Column("network_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("host", sa.Integer(), nullable=False),
        sa.Column("virtual_ip", sa.String(length=15), nullable=False),
        sa.Column("virtual_ip6", sa.String(length=39), nullable=False),
        sa.Column("authorized", sa.Boolean(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["machine_id"], ["machines.id"], name=op.f("fk_nodes_machine_id_machines"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["network_id"], ["networks.id"], name=op.f("fk_nodes_network_id_networks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("machine_id", "network_id", name=op.f("uq_nodes_machine_id_network_id")),
        sa.UniqueConstraint("network_id", "host", name=op.f("uq_nodes_network_id_host")),
        sa.UniqueConstraint("network_id", "name", name=op.f("uq_nodes_network_id_name")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nodes_network_id"), ["network_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_online"), ["online"], unique=False)

    op.create_table(
        "refresh_tokens",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("family", sa.String(length=32), nullable=False),
        sa.Column("access_jti", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_refresh_tokens_account_id_accounts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_refresh_tokens")),
    )
    with op.batch_alter_table("refresh_tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_refresh_tokens_family"), ["family"], unique=False)

    op.create_table(
        "node_routes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("network_id", sa.Integer(), nullable=False),
        sa.Column("cidr", sa.String(length=50), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.String(length=10), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["network_id"], ["networks.id"], name=op.f("fk_node_routes_network_id_networks"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_routes_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_routes")),
        sa.UniqueConstraint("node_id", "cidr", name=op.f("uq_node_routes_node_id_cidr")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_routes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_routes_network_id"), ["network_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_node_routes_node_id"), ["node_id"], unique=False)

    op.create_table(
        "node_server_connections",
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("server_id", sa.Integer(), nullable=False),
        sa.Column("connected_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_server_connections_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["server_id"], ["servers.id"], name=op.f("fk_node_server_connections_server_id_servers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("node_id", "server_id", name=op.f("pk_node_server_connections")),
    )


def downgrade() -> None:

    op.drop_table("node_server_connections")
    with op.batch_alter_table("node_routes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_node_routes_node_id"))
        batch_op.drop_index(batch_op.f("ix_node_routes_network_id"))

    op.drop_table("node_routes")
    with op.batch_alter_table("refresh_tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_refresh_tokens_family"))

    op.drop_table("refresh_tokens")
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nodes_online"))
        batch_op.drop_index(batch_op.f("ix_nodes_network_id"))

    op.drop_table("nodes")
    with op.batch_alter_table("node_endpoints", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_node_endpoints_machine_id"))

    op.drop_table("node_endpoints")
    with op.batch_alter_table("token_blacklist", schema=None) as batch_op:
        batch_op.drop_index("ix_token_blacklist_subject")
        batch_op.drop_index("ix_token_blacklist_expires_at")

    op.drop_table("token_blacklist")
    op.drop_table("settings")
    op.drop_table("servers")
    op.drop_table("revisions")
    op.drop_table("networks")
    op.drop_table("machines")
    op.drop_table("login_failures")
    op.drop_table("latency_records")
    with op.batch_alter_table("issued_tokens", schema=None) as batch_op:
        batch_op.drop_index("ix_issued_tokens_subject")
        batch_op.drop_index("ix_issued_tokens_expires_at")

    op.drop_table("issued_tokens")
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.drop_index("ix_changes_machine_id")

    op.drop_table("changes")
    with op.batch_alter_table("audit_logs", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_logs_created_at")

    op.drop_table("audit_logs")
    op.drop_table("accounts")
