"""Clients of a server: a storage for one `Connection`, and a pool of them."""

from berkeleydb_storage.client.committing import Fate
from berkeleydb_storage.client.dialing import AddressDialer, Dialer
from berkeleydb_storage.client.pool import Pool, PoolStatistics
from berkeleydb_storage.client.storage import ClientStorage

__all__ = ["AddressDialer", "ClientStorage", "Dialer", "Fate", "Pool", "PoolStatistics"]
