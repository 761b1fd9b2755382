"""Round trip times between nodes and relays, and the paths that follow."""
