"""Every table of every domain, for Alembic to compare with the database."""

from __future__ import annotations

from edgelink_controller.audit import models as audit
from edgelink_controller.changes import models as changes
from edgelink_controller.identity import models as identity
from edgelink_controller.latency import models as latency
from edgelink_controller.networks import models as networks
from edgelink_controller.nodes import models as nodes
from edgelink_controller.routes import models as routes
from edgelink_controller.servers import models as servers
from edgelink_controller.settings import models as settings
from edgelink_controller.tokens import models as tokens

__all__ = [
    "audit",
    "changes",
    "identity",
    "latency",
    "networks",
    "nodes",
    "routes",
    "servers",
    "settings",
    "tokens",
]
