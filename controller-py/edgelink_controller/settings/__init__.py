"""Settings that may change while the controller runs."""
