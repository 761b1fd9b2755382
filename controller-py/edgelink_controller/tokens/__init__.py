"""Issued tokens and revocations."""
