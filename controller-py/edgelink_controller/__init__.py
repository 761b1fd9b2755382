"""The controller of EdgeLink: who is in which network, with which address, keys, relays and routes.

It never sees a packet. `docs/architecture.md` has the map; each domain package reads endpoints → service → repository.
"""

__version__ = "0.1.0"
