"""``python -m benchmarks.method.child FUNCTION ARGUMENTS``: prints what a function of `probes` returns, as JSON."""

import json
import sys

from benchmarks.work import probes

if __name__ == "__main__":
    print(json.dumps(getattr(probes, sys.argv[1])(*json.loads(sys.argv[2]))))
