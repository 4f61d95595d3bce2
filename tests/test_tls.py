"""TLS with real certificates and real handshakes: what is trusted, what is refused, what a reload changes."""

import asyncio
import contextlib
import datetime
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trustme

from berkeleydb_storage.errors import CertificateError
from berkeleydb_storage.transport import tls
from berkeleydb_storage.transport.addresses import Address, bound_address, connect, listen
from berkeleydb_storage.transport.tls import ServerCertificates, client_context

ROOT = Path(tls.__file__).parents[2]
PATIENCE = 5.0
SHORT = 0.3


class Files:
    """An authority, and certificates that it signed, as files in a directory."""

    def __init__(self, directory):
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)

    def issue(self, name="server", hosts=("localhost", "127.0.0.1", "::1"), **options):
        """Return certificate and key of a new pair."""
        issued = self.authority.issue_cert(*hosts, **options)
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        issued.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return certificate, key


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Made once: keys take time."""
    files = Files(tmp_path_factory.mktemp("certificates"))
    files.issue("first")
    files.issue("second")
    files.issue("client", hosts=("ada",))
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.timezone.utc)
    files.issue("expired", not_before=now - 2 * day, not_after=now - day)
    files.issue("elsewhere", hosts=("db.example.org",))
    return files


@pytest.fixture
def files(made, tmp_path):
    """A copy, to be changed."""
    directory = tmp_path / "certificates"
    shutil.copytree(made.directory, directory)
    return directory


def install(files, name):
    """Put a pair where the server has it."""
    shutil.copy(files / f"{name}.pem", files / "server.pem")
    shutil.copy(files / f"{name}.key", files / "server.key")


@contextlib.contextmanager
def serving(context, host="127.0.0.1"):
    """Run an asyncio server that answers with what it knows of the client's certificate; give its address."""
    ready, end, found = threading.Event(), [], []

    async def answer(reader, writer):
        peer = writer.get_extra_info("peercert")
        writer.write(repr(peer.get("subjectAltName") if peer else None).encode() + b"\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def main():
        sock = listen(Address(host, 0))
        found.append(bound_address(Address("localhost" if host == "127.0.0.1" else host, 0, tls=True), sock))
        server = await asyncio.start_server(answer, sock=sock, ssl=context)
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda *_: None)  # handshakes that fail
        end.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield found[0]
    finally:
        end[0]()
        thread.join()


def ask(address, context):
    """Connect, and return the server's certificate and what it answers."""
    with connect(address, timeout=PATIENCE, context=context) as sock:
        return sock.getpeercert(binary_form=True), sock.recv(1000).decode().strip()


def der(path):
    return ssl.PEM_cert_to_DER_cert(
        path.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_handshake(files, host):
    certificates = ServerCertificates(files / "first.pem", files / "first.key")
    with serving(certificates.context, host) as address:
        found, answer = ask(address, client_context(ca=files / "ca.pem"))
    assert found == der(files / "first.pem")
    assert answer == "None"


def test_a_server_is_verified_by_default(files, monkeypatch):
    certificates = ServerCertificates(files / "first.pem", files / "first.key")
    with serving(certificates.context) as address:
        for context in (None, client_context()):
            with pytest.raises(
                ssl.SSLCertVerificationError, match=f"tls://localhost:{address.port}: .*certificate verify"
            ):
                ask(address, context)
        assert ask(address, client_context(verify=False))[1] == "None"
        assert ask(address, client_context(ca=files / "first.pem"))[1] == "None"


def test_a_name_that_is_not_the_servers(files):
    context = ServerCertificates(files / "elsewhere.pem", files / "elsewhere.key").context
    with serving(context) as address, pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        ask(address, client_context(ca=files / "ca.pem"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_reload_is_for_new_connections(files, version, host):
    """In either version, and whether the client names the server or, with a number, does not."""
    install(files, "first")
    certificates = ServerCertificates(files / "server.pem", files / "server.key")
    context = client_context(ca=files / "ca.pem")
    context.minimum_version = context.maximum_version = version
    before = certificates.context
    with serving(before) as address:
        address = Address(host, address.port, tls=True)
        assert ask(address, context)[0] == der(files / "first.pem")
        install(files, "second")
        assert ask(address, context)[0] == der(files / "first.pem")
        certificates.reload()
        assert certificates.context is before
        assert ask(address, context)[0] == der(files / "second.pem")


def encrypt(files):
    subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", files / "first.key", "-out", files / "server.key"],
        check=True,
    )


BREAKING = {
    "no certificate": (lambda files: (files / "server.pem").unlink(), "server.pem: No such file"),
    "no key": (lambda files: (files / "server.key").unlink(), "server.key: No such file"),
    "another key": (lambda files: shutil.copy(files / "second.key", files / "server.key"), "is not the key of"),
    "swapped": (
        lambda files: shutil.copy(files / "first.key", files / "server.pem"),
        "server.pem holds no certificate",
    ),
    "a certificate as key": (lambda files: shutil.copy(files / "ca.pem", files / "server.key"), "holds no private key"),
    "empty": (lambda files: (files / "server.pem").write_text(""), "server.pem holds no certificate"),
    "malformed": (
        lambda files: (files / "server.pem").write_text((files / "first.pem").read_text()[:200]),
        "server.pem and .*server.key cannot be used",
    ),
    "binary": (lambda files: (files / "server.pem").write_bytes(bytes(range(256))), "server.pem holds no certificate"),
    "a directory": (lambda files: (files / "server.key").unlink() or (files / "server.key").mkdir(), "Is a directory"),
    "encrypted": (encrypt, "server.key is encrypted: .* store it decrypted"),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_bad_pair_is_refused_and_the_old_one_stays(files, name):
    change, message = BREAKING[name]
    install(files, "first")
    certificates = ServerCertificates(files / "server.pem", files / "server.key")
    change(files)
    with pytest.raises(CertificateError, match=message):
        ServerCertificates(files / "server.pem", files / "server.key")
    with serving(certificates.context) as address:
        with pytest.raises(CertificateError, match=message):
            certificates.reload()
        assert ask(address, client_context(ca=files / "ca.pem"))[0] == der(files / "first.pem")
        install_again = files / "server.key"
        if install_again.is_dir():
            install_again.rmdir()
        install(files, "second")
        certificates.reload()
        assert ask(address, client_context(ca=files / "ca.pem"))[0] == der(files / "second.pem")


def test_an_expired_certificate_is_a_warning(files, caplog):
    with caplog.at_level(logging.WARNING):
        ServerCertificates(files / "first.pem", files / "first.key")
        assert caplog.text == ""
        certificates = ServerCertificates(files / "expired.pem", files / "expired.key")
    assert "expired.pem: clients will refuse it: certificate has expired" in caplog.text
    with serving(certificates.context) as address, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        ask(address, client_context(ca=files / "ca.pem"))


def test_a_key_in_the_file_of_its_certificate(files):
    both = files / "both.pem"
    both.write_bytes((files / "first.key").read_bytes() + (files / "first.pem").read_bytes())
    with serving(ServerCertificates(both).context) as address:
        assert ask(address, client_context(ca=files / "ca.pem"))[1] == "None"


def test_certificates_of_clients(files):
    certificates = ServerCertificates(files / "first.pem", files / "first.key", client_ca=files / "ca.pem")
    own = client_context(ca=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    with serving(certificates.context) as address:
        assert "ada" in ask(address, own)[1]
        assert turned_away(address, client_context(ca=files / "ca.pem"))


def turned_away(address, context, session=None):
    """Connect, with what a session before left, and tell whether the server ends that without an answer.

    In TLS 1.3 a client learns that its certificate is not wanted after the handshake.
    """
    try:
        with (
            connect(Address(address.host, address.port), timeout=PATIENCE) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as secured,
        ):
            return secured.recv(1000) == b""
    except OSError:
        return True


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_of_clients_can_be_replaced(files, tmp_path, version):
    """The old one is not trusted any more after the reload; nor is a session that it let in."""
    other = Files(tmp_path)
    trusted = files / "trusted.pem"
    shutil.copy(files / "ca.pem", trusted)
    certificates = ServerCertificates(files / "first.pem", files / "first.key", client_ca=trusted)
    own = client_context(ca=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    own.maximum_version = version
    with serving(certificates.context) as address:
        with connect(address, timeout=PATIENCE, context=own) as sock:
            assert b"ada" in sock.recv(1000)
            session = sock.session
        assert not turned_away(address, own, session)
        shutil.copy(other.ca, trusted)
        certificates.reload()
        assert turned_away(address, own)
        assert turned_away(address, own, session)


def test_contexts_of_clients_name_what_is_wrong(files):
    for options, message in [
        ({"ca": files / "nothing.pem"}, "nothing.pem: No such file"),
        ({"ca": files / "first.key"}, "first.key holds no certificates"),
        ({"certificate": files / "nothing.pem"}, "nothing.pem: No such file"),
        ({"certificate": files / "client.pem", "key": files / "first.key"}, "is not the key of"),
        ({"key": files / "client.key"}, "without its certificate"),
    ]:
        with pytest.raises(CertificateError, match=message):
            client_context(**options)


def test_a_directory_of_authorities(files):
    assert client_context(ca=files).verify_mode == ssl.CERT_REQUIRED


def test_old_versions_are_refused(files):
    for context in (
        client_context(),
        client_context(verify=False),
        ServerCertificates(files / "first.pem", files / "first.key").context,
    ):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@contextlib.contextmanager
def accepting(work):
    """Accept one connection, and hand it to a function in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                work(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("localhost", server.getsockname()[1], tls=True)
        finally:
            thread.join()


def trickle(sock):
    """Begin a record of the greatest length, and go on with a byte now and then: each byte is in time."""
    sock.sendall(b"\x16\x03\x03\x40\x00")
    sock.settimeout(SHORT / 4)
    while True:
        with contextlib.suppress(TimeoutError):
            if not sock.recv(4096):
                return
        sock.sendall(b"\0")


def silent(sock):
    while sock.recv(4096):
        pass


@pytest.mark.parametrize("work", [silent, trickle])
def test_a_handshake_has_its_time(work):
    with accepting(work) as address:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"tls://localhost:{address.port}"):
            connect(address, timeout=SHORT)
        assert SHORT * 0.9 <= time.monotonic() - started < SHORT + PATIENCE / 2


def test_a_server_without_tls(files):
    with (
        accepting(lambda sock: sock.sendall(b"N" * 100)) as address,
        pytest.raises(ssl.SSLError, match="tls://localhost"),
    ):
        connect(address, timeout=PATIENCE)


def test_under_gevent(files):
    script = f"""
from gevent import monkey; monkey.patch_all()
import gevent
from berkeleydb_storage.transport.addresses import Address, bound_address, connect, listen
from berkeleydb_storage.transport.tls import ServerCertificates, client_context
certificates = ServerCertificates({str(files / "first.pem")!r}, {str(files / "first.key")!r})
server = listen(Address("127.0.0.1", 0)); server.settimeout({PATIENCE})
def serve():
    sock = certificates.context.wrap_socket(server.accept()[0], server_side=True)
    sock.sendall(sock.recv(4).upper()); sock.close()
job = gevent.spawn(serve)
address = bound_address(Address("localhost", 0, tls=True), server)
with connect(address, timeout={PATIENCE}, context=client_context(ca={str(files / "ca.pem")!r})) as client:
    assert type(client).__module__.startswith("gevent"), type(client)
    client.sendall(b"ping")
    assert client.recv(4) == b"PING"
job.get()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "done\n", done.stderr
