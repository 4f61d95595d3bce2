"""Runs Durus' test/stress.py, which has to be importable as ``durus.test.stress`` because it pickles its classes.

Usage: run_stress.py DIRECTORY-OF-DURUS-TESTS SEED ARGUMENTS-OF-STRESS...
"""

import random
import sys
import types

tests = types.ModuleType("durus.test")
tests.__path__ = [sys.argv[1]]
sys.modules["durus.test"] = tests
random.seed(int(sys.argv[2]))
del sys.argv[1:3]

from durus.test.stress import main  # noqa: E402

main()
