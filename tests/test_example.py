"""The example application, under a real gunicorn with four workers of gevent: every visit counts."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from concurrency import PATIENCE
from conftest import check_directory
from durus.connection import Connection
from served import PYTHONPATH, free_port

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.server import Server

EXAMPLE = Path(__file__).parents[1] / "examples" / "flask_app"
VISITS = 400
CLIENTS = 8

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not part of the wheel")


class Gunicorn:
    """The application at a port of localhost."""

    def __init__(self, where, log):
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = log
        command = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "app:app"]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--bind", self.url.removeprefix("http://")],
                cwd=EXAMPLE,
                env=os.environ | {"PYTHONPATH": PYTHONPATH, "GUESTS": str(where), "HOME": str(log.parent)},
                stderr=stderr,
            )
        try:
            self._wait()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait(self):
        """Wait until all workers have booted, and the application answers."""
        ticks = threading.Event()
        for _ in range(int(PATIENCE / 0.1)):
            if len(self.workers()) >= 4:
                self.get("/")
                return
            assert self.process.poll() is None, self.log.read_text()
            ticks.wait(0.1)
        raise AssertionError(self.log.read_text())

    def workers(self):
        """Return the process ids of the workers that were started."""
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log.read_text())]

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def post(self, path, **values):
        data = urllib.parse.urlencode(values).encode()
        with urllib.request.urlopen(self.url + path, data=data, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()


def visit_and_sign(gunicorn):
    """Have many clients visit and sign at the same time, and see that everything is there."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda _: gunicorn.post("/visits"), range(VISITS)))
        list(clients.map(lambda number: gunicorn.post("/names", name=f"guest {number}"), range(15)))
    page = gunicorn.get("/")
    assert f"<h1>{VISITS} visits</h1>" in page
    assert sorted(re.findall(r"<li>guest (\d+)</li>", page), key=int) == [str(number) for number in range(15)]


def stored(directory):
    with BerkeleyDBStorage(directory) as storage:
        root = Connection(storage).get_root()
        return root["count"], len(root["names"])


def test_workers_share_the_storage(directory, tmp_path):
    gunicorn = Gunicorn(directory, tmp_path / "log")
    try:
        visit_and_sign(gunicorn)
    finally:
        gunicorn.stop()
    assert stored(directory) == (VISITS, 15)
    check_directory(directory)


def test_through_a_server(directory, tmp_path):
    with BerkeleyDBStorage(directory) as storage, Server(storage, "127.0.0.1:0") as server:
        gunicorn = Gunicorn(server.address, tmp_path / "log")
        try:
            visit_and_sign(gunicorn)
        finally:
            gunicorn.stop()
    assert stored(directory) == (VISITS, 15)


def test_a_worker_that_is_killed_takes_nothing_along(directory, tmp_path):
    """Also the one that owns the storage: whatever was answered is there."""
    gunicorn = Gunicorn(directory, tmp_path / "log")
    answered, errors = [], []

    def visit(_):
        try:
            answered.append(gunicorn.post("/visits"))
        except urllib.error.HTTPError as error:
            errors.append(error)
        except (OSError, http.client.HTTPException):
            pass  # it was with the worker that was killed; whether it counts is not known

    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            visits = [clients.submit(visit, number) for number in range(VISITS)]
            for worker in gunicorn.workers()[:4]:
                visits[len(answered) // 2].result()
                os.kill(worker, signal.SIGKILL)
            for each in visits:
                each.result()
        gunicorn.post("/names", name="the last")
    finally:
        gunicorn.stop()
    count, _ = stored(directory)
    assert not errors, gunicorn.log.read_text()
    assert len(answered) <= count <= VISITS
    assert len(answered) > VISITS // 2
    check_directory(directory)
