"""Where a controller's files are. Imports nothing heavy, because every command of edgelink-ctl starts here."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_NAMES = ("controller.toml", "controller.json")


def default_state_dir() -> Path:
    """EDGELINK_STATE_DIR, else /var/lib/edgelink for root, else beside the user's other data."""
    if configured := os.environ.get("EDGELINK_STATE_DIR"):
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/var/lib/edgelink")
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local/share"))) / "edgelink"


def find_config() -> Path | None:
    """The configuration file that is used when none is named."""
    for folder in (Path.home() / ".config/edgelink", Path("/etc/edgelink")):
        for name in CONFIG_NAMES:
            if (folder / name).is_file():
                return folder / name
    return None
