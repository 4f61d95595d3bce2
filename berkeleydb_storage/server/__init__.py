"""The fast server: one event loop between the clients and a storage."""

from berkeleydb_storage.server.limits import Limits
from berkeleydb_storage.server.serving import Server

__all__ = ["Limits", "Server"]
