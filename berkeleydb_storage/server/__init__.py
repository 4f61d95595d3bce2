"""The fast server: one event loop between the clients and a storage."""
