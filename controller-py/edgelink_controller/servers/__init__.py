"""Relays and STUN servers."""
