"""Threads that fail loudly and do not outlive their test."""

import threading
import time

PATIENCE = 60
"""Seconds after which a thread counts as hanging."""


def run_threads(*functions):
    """Run each function in a thread of its own, and raise what the first that failed has raised."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def wait_until(happened, seconds=PATIENCE):
    """Look again and again whether something has happened, for so long at most, and return what that said."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)
    return found
