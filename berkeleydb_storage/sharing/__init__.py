"""One storage for several processes of one machine: the first owns it, and serves the others."""

from berkeleydb_storage.sharing.storage import SharedStorage

__all__ = ["SharedStorage"]
