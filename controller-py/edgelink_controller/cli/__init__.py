"""Command lines: edgelink-controller and edgelink-ctl."""
