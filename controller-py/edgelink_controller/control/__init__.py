"""The control channels to nodes and relays."""
