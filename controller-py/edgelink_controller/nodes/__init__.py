"""Machines, their memberships (nodes), addresses, keys and whereabouts."""
