"""The leads' desk: server-rendered pages under /desk, from what the ledger holds.

Each page is a module of its own: first what it shows, as dataclasses that `backend.desk.api` gives as JSON
too, then its routes. Nothing is loaded from outside this server.
"""

from __future__ import annotations
