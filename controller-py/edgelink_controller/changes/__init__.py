"""The change log: what control channels read from their cursor."""
