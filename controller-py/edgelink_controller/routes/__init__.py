"""Routes that nodes offer to their network."""
