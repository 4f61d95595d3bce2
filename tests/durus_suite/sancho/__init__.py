"""Stands in for the test package of this name, which Durus' tests import and which there is for Python 2 only."""
