"""What a client may find at the other end: a server that comes and goes, a cut connection, a peer with a script."""

import contextlib
import socket
import tempfile
import threading

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.server import Server


class Site:
    """A storage in `directory` with a server on a Unix socket, which can be restarted."""

    def __init__(self, directory, **options):
        self._options = options
        self._sockets = tempfile.TemporaryDirectory(prefix="site-")
        self.path = f"{self._sockets.name}/server"
        self.address = f"unix:{self.path}"
        self.storage = BerkeleyDBStorage(directory, durable=False)
        self.server = None
        self.start()

    def start(self):
        self.server = Server(self.storage, self.address, **self._options)
        self.server.start()

    def stop(self):
        self.server.close()

    def restart(self):
        self.stop()
        self.start()

    def close(self):
        self.server.close()
        self.storage.close()
        self._sockets.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class Proxy:
    """Forwards connections from a Unix socket to another one, or to a host and port, and cuts them.

    `cut(up=…)` or `cut(down=…)` is about the connection that is open, or the next one where there is none.
    """

    def __init__(self, target):
        self._target = target
        self._sockets = tempfile.TemporaryDirectory(prefix="proxy-")
        self.path = f"{self._sockets.name}/proxy"
        self.address = f"unix:{self.path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._left = {"up": None, "down": None}
        self._lock = threading.Lock()
        self._pair = None
        self.accepted = 0
        self.bytes = {"up": 0, "down": 0}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self, **left):
        """Cut instead of forwarding more than these many bytes."""
        with self._lock:
            self._left |= left

    def reset(self):
        """Cut the open connection at once, and let the next ones live."""
        with self._lock:
            self._left = {"up": None, "down": None}
            pair = self._pair
        if pair is not None:
            _shut(pair)

    def refuse(self):
        """Let no further connection through."""
        self._target = "/nowhere"

    def admit(self, target):
        """Let connections through to there."""
        self._target = target

    def _serve(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            far = socket.socket(socket.AF_INET if isinstance(self._target, tuple) else socket.AF_UNIX)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            self._pair = near, far
            pumps = [
                threading.Thread(target=self._pump, args=arguments, daemon=True)
                for arguments in (("up", near, far), ("down", far, near))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()
            near.close()
            far.close()

    def _pump(self, way, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    left = self._left[way]
                    over = left is not None and len(data) > left
                    if over:
                        data, self._left[way] = data[:left], None
                    elif left is not None:
                        self._left[way] = left - len(data)
                    self.bytes[way] += len(data)
                target.sendall(data)
                if over:
                    break
        _shut((source, target))

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        self._thread.join()
        self._sockets.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _shut(pair):
    for sock in pair:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class Scripted:
    """A dialer whose connections are served by a function, one after the other; it gets the server's end of each."""

    def __init__(self, serve):
        self._serve = serve
        self._threads = []
        self._ends = []
        self.dialed = 0

    def __str__(self):
        return "a scripted peer"

    def __call__(self, timeout):
        near, far = socket.socketpair()
        self.dialed += 1
        self._ends.append(far)
        thread = threading.Thread(target=self._run, args=(far, self.dialed), daemon=True)
        self._threads.append(thread)
        thread.start()
        return near

    def _run(self, far, number):
        with far, contextlib.suppress(OSError):
            self._serve(far, number)

    def close(self):
        for end in self._ends:
            _shut((end,))
        for thread in self._threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
