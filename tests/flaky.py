"""A file system of fsspec that fails: an object store in memory, whose requests fail, hang, or lie, at random.

``flaky://name/path``: each name is a store, which lives as long as the process. `FAULTS` says what goes wrong.
"""

import random
import threading
from contextlib import contextmanager

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from berkeleydb_storage.backup.stores import remote


class Faults:
    """What goes wrong, and how often."""

    def __init__(self):
        self.random = random.Random(0)
        self.rates = {}  # kind -> probability of each request
        self.count = {}  # kind -> how often it happened
        self.down = False
        self.hanging = threading.Event()  # requests hang until it is set
        self.hanging.set()
        self.requests = 0

    def happens(self, kind):
        if self.random.random() >= self.rates.get(kind, 0.0):
            return False
        self.count[kind] = self.count.get(kind, 0) + 1
        return True

    def before(self):
        """Fail before anything is done."""
        self.requests += 1
        self.hanging.wait()
        if self.down:
            raise ConnectionError("the network is down")
        if self.happens("refused"):
            raise ConnectionResetError("connection reset by peer")

    def after(self):
        """Fail when all is done."""
        if self.happens("unanswered"):
            raise TimeoutError("no answer")


FAULTS = Faults()


@contextmanager
def faults(seed=0, **rates):
    """Have requests fail at these rates: "refused", "unanswered", "lost" (nothing is stored, and nobody says so),
    "late" (it is stored some requests later), "half" (of what is written piece by piece, a half is left)."""
    FAULTS.__init__()
    FAULTS.random.seed(seed)
    FAULTS.rates = rates
    try:
        yield FAULTS
    finally:
        FAULTS.rates = {}
        FAULTS.down = False
        FAULTS.hanging.set()


class FlakyFileSystem(AbstractFileSystem):
    """An object store."""

    protocol = "flaky"
    cachable = False
    stores: dict = {}  # noqa: RUF012 - shared on purpose
    late: list = []  # noqa: RUF012 - (requests left, path, data)

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("flaky://").strip("/")

    @property
    def objects(self):
        return self.stores.setdefault("objects", {})

    def _request(self):
        FAULTS.before()
        for entry in list(self.late):
            entry[0] -= 1
            if entry[0] <= 0:
                self.late.remove(entry)
                self.objects.setdefault(entry[1], entry[2])

    def _store(self, path, data, exclusive):
        if exclusive and path in self.objects:
            raise FileExistsError(path)
        if FAULTS.happens("late"):
            self.late.append([FAULTS.random.randrange(1, 20), path, data])
            raise TimeoutError("no answer")
        if FAULTS.happens("lost"):
            return
        self.objects[path] = data
        FAULTS.after()

    def ls(self, path, detail=True, **_):
        self._request()
        path = self._strip_protocol(path)
        found = {}
        for name, data in list(self.objects.items()):
            if name.startswith(path + "/"):
                first, rest, _ = name[len(path) + 1 :].partition("/")
                whole = f"{path}/{first}"
                found[whole] = {
                    "name": whole,
                    "size": 0 if rest else len(data),
                    "type": "directory" if rest else "file",
                }
        FAULTS.after()
        if not found and path not in self.objects:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **_):
        self._request()
        path = self._strip_protocol(path)
        found = {
            name: {"name": name, "size": len(data), "type": "file"}
            for name, data in list(self.objects.items())
            if name.startswith(path + "/")
        }
        FAULTS.after()
        return found if detail else list(found)

    def info(self, path, **_):
        self._request()
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def exists(self, path, **_):
        self._request()
        return self._strip_protocol(path) in self.objects

    def makedirs(self, path, exist_ok=False):
        self._request()

    def pipe_file(self, path, value, mode="overwrite", **_):
        self._request()
        self._store(self._strip_protocol(path), bytes(value), mode == "create")

    def cat_file(self, path, start=None, end=None, **_):
        self._request()
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start:end]

    def rm_file(self, path):
        self._request()
        if self.objects.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)
        FAULTS.after()

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **kwargs):
        self._request()
        return FlakyFile(self, path, mode, block_size or 1 << 20, autocommit, cache_options=cache_options, **kwargs)


class FlakyFile(AbstractBufferedFile):
    """What is being written part by part; it becomes an object when it is closed."""

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.fs._request()
        self.parts.append(self.buffer.getvalue())
        if isinstance(self.fs, RenamingFileSystem):
            self.fs.objects[self.path] = b"".join(self.parts)
            if FAULTS.happens("half"):
                raise ConnectionResetError("connection reset by peer")
        elif final:
            self.fs._store(self.path, b"".join(self.parts), "x" in self.mode)
        return True

    def discard(self):
        self.parts = []


class RenamingFileSystem(FlakyFileSystem):
    """What has files in place of objects, that are visible while they are written, and can be renamed."""

    protocol = "renaming"

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("renaming://").strip("/")

    def mv(self, old, new, **_):
        self._request()
        self.objects[self._strip_protocol(new)] = self.objects.pop(self._strip_protocol(old))
        FAULTS.after()


def register(monkeypatch):
    """Have fsspec know both, and the package take the first for an object store; each test begins with nothing."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    fsspec.register_implementation("renaming", RenamingFileSystem, clobber=True)
    monkeypatch.setattr(remote, "ATOMIC", {*remote.ATOMIC, "flaky"})
    FlakyFileSystem.stores.clear()
    FlakyFileSystem.late.clear()
    FAULTS.__init__()
