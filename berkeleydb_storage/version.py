"""The version of this package: year, month, and the number of the release in it."""

__version__ = "2026.11.0"
