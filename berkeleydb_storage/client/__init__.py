"""Clients of a server: a storage for one `Connection`, and a pool of them."""
