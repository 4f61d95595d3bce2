"""A page with a counter and a guest book, for as many worker processes as there are.

    mkdir -p guests
    GUESTS=guests gunicorn --config gunicorn.conf.py app:app                    # no server: the workers share it
    durus-bdb serve guests &  GUESTS=127.0.0.1:2972 gunicorn --config gunicorn.conf.py app:app

What a request changed is on the disk before its answer is sent. Where two requests change the same object at the same
time, one of them gets a conflict, and is simply done again.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from durus.error import ConflictError
from durus.persistent_list import PersistentList
from flask import Flask, Response, redirect, render_template_string, request

from berkeleydb_storage import SharedStorage
from berkeleydb_storage.client import Pool

PAGE = """<!doctype html>
<title>Guests</title>
<h1>{{ count }} visits</h1>
<form method="post" action="/names"><input name="name" required> <button>Sign</button></form>
<ol>{% for name in names %}<li>{{ name }}</li>{% endfor %}</ol>
"""
SHOWN = 20
ATTEMPTS = 50
"""At one transaction: all visitors change the same counter. A full disk refuses a commit by a conflict, too."""
PAUSE = 0.1
"""Seconds between two attempts, at most: those who wait for different times get out of each other's way."""

Result = TypeVar("Result")


def open_pool(where: str) -> Pool:
    """Return the connections of this process to a server, or, if `where` is a directory, to the storage in it."""
    if Path(where).is_dir():
        return Pool(lambda: SharedStorage(where), size=20)
    return Pool(where, size=20)


pool = open_pool(os.environ.get("GUESTS", "guests"))
app = Flask(__name__)


def transaction(work: Callable[[Any], Result]) -> Result:
    """Do something with the root object and commit it, again where somebody else changed the same meanwhile."""
    with pool.connection() as connection:
        left = ATTEMPTS
        while True:
            try:
                result = work(connection.get_root())
                connection.commit()
                return result
            except ConflictError:
                left -= 1
                if not left:
                    raise
                connection.abort()
                time.sleep(random.uniform(0, min(PAUSE, 0.001 * 2 ** (ATTEMPTS - left))))


@app.get("/")
def page() -> str:
    """Show the counter and the newest names."""
    count, names = transaction(lambda root: (root.get("count", 0), list(root.get("names", ()))[-SHOWN:]))
    return render_template_string(PAGE, count=count, names=names)


@app.post("/visits")
def visit() -> dict[str, int]:
    """Count a visit."""
    return {"count": transaction(_visit)}


def _visit(root: Any) -> int:
    count: int = root.get("count", 0) + 1
    root["count"] = count
    return count


@app.post("/names")
def sign() -> Response:
    """Add a name."""
    name = request.form["name"][:100]
    transaction(lambda root: _sign(root, name))
    return redirect("/")  # type: ignore[return-value]


def _sign(root: Any, name: str) -> None:
    if "names" not in root:
        root["names"] = PersistentList()
    root["names"].append(name)
