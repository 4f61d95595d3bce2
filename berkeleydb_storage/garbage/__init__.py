"""Garbage: when and how much to collect (`policy`), and the collection of what has no referrer (`collector`)."""
