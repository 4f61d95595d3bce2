"""Serves a storage to Durus clients: ``python server.py DIRECTORY``."""
