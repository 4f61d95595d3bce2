"""Addresses, sockets and TLS, for servers and clients alike."""
