"""Alembic environment; runs on the connection that `upgrade` hands over."""

from __future__ import annotations

from alembic import context

from edgelink_controller.kit.db import Base
from edgelink_controller.migrations import tables  # noqa: F401 - fills Base.metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
