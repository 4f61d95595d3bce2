"""TLS: contexts for clients and servers, and certificates that are replaced while a server runs.

1. Nothing older than TLS 1.2. A client verifies unless it was told not to.
2. `ServerCertificates.context` always has a pair that works: one that does not is never put in use.
3. Nobody is asked for the password of a key: an encrypted key is refused.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from pathlib import Path
from typing import NoReturn

from berkeleydb_storage.errors import CertificateError

__all__ = ["ServerCertificates", "client_context"]

MOST_FLIGHTS = 10
"""Of a handshake; TLS needs four."""

_logger = logging.getLogger(__name__)


class _Encrypted(Exception):
    """Raised when OpenSSL asks for the password of a key."""


def client_context(
    *,
    ca: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """Return the context of a client. Thread-safe once made; make it once, it takes milliseconds.

    Args:
        ca: the file or directory with the authorities that may have signed the server's certificate, or with that
            certificate itself; None: the system's authorities.
        certificate: the client's own certificate, with what is between it and an authority, for servers that want one.
        key: its key; None: it is in the same file.
        verify: False: whoever sits in between can read and change everything.

    Raises:
        CertificateError: a file is missing or cannot be used.
    """
    context = ssl.create_default_context() if ca is None else _trusting(ca)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        _load_pair(context, Path(certificate), Path(certificate if key is None else key))
    elif key is not None:
        raise CertificateError(f"{os.fspath(key)}: a key is of no use without its certificate")
    return context


def _trusting(ca: str | os.PathLike[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_authorities(context, Path(ca))
    return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, ca: Path) -> None:
    if ca.is_dir():
        context.load_verify_locations(capath=ca)
        return
    _read(ca)
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise CertificateError(f"{ca} holds no certificates: PEM is expected ({error.reason})") from error


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate and its key, or say which of the two is wrong."""
    if b"-----BEGIN CERTIFICATE-----" not in _read(certificate):
        raise CertificateError(f"{certificate} holds no certificate: PEM is expected")
    if b"PRIVATE KEY-----" not in _read(key):
        raise CertificateError(f"{key} holds no private key: PEM is expected")
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except _Encrypted:
        raise CertificateError(
            f"{key} is encrypted: nobody is there to type its password; store it decrypted (`openssl pkey`), mode 0600"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(
                f"{key} is not the key of {certificate}: give the two that were made together"
            ) from error
        raise CertificateError(f"{certificate} and {key} cannot be used: {error.reason or error}") from error
    except OSError as error:
        raise CertificateError(f"{certificate} or {key}: {error.strerror}") from error


def _refuse_to_ask() -> NoReturn:
    raise _Encrypted


class ServerCertificates:
    """A server's certificate and key, read again when told to. Thread-safe."""

    def __init__(
        self,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str] | None = None,
        client_ca: str | os.PathLike[str] | None = None,
    ) -> None:
        """Read the files.

        Args:
            certificate: the server's, followed by what is between it and an authority.
            key: its key, not encrypted; None: it is in the same file.
            client_ca: the file or directory with the authorities of the clients' certificates: a client must have one.
                None: it need not.

        Raises:
            CertificateError: a file is missing or cannot be used.
        """
        self._certificate = Path(certificate)
        self._key = self._certificate if key is None else Path(key)
        self._client_ca = None if client_ca is None else Path(client_ca)
        self._lock = threading.Lock()
        self._current = self._read()
        """Guarded by `_lock` for writing: a reader sees the one before or the one after."""
        self._reloaded = 0
        """When, in seconds since 1970; 0: never. Guarded by `_lock` for writing."""
        self._context = self._read()
        self._context.sni_callback = self._switch

    @property
    def context(self) -> ssl.SSLContext:
        """The server's context, always the same object: a handshake uses what was read last."""
        return self._context

    def reload(self) -> None:
        """Read the files again, for the connections to come. Those that exist are not touched.

        Raises:
            CertificateError: a file is missing or cannot be used; what was read before stays in use.
        """
        with self._lock:
            self._current = self._read()
            self._reloaded = int(time.time())

    def _switch(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        """Give a handshake that begins what was read last; called for each, whether it names the server or not.

        A session of TLS 1.2 that is older than that is not resumed: its client certificate would not be looked at
        again. After the alert a client begins without a session.
        """
        connection.context = self._current
        session = connection.session if self._client_ca is not None and connection.session_reused else None
        if session is not None and session.time <= self._reloaded:
            return int(ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE)
        return None

    def _read(self) -> ssl.SSLContext:
        context = self._server_context()
        _warn(context, self._certificate)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            _load_authorities(context, self._client_ca)
        return context

    def _server_context(self) -> ssl.SSLContext:
        """Return a context without tickets: a session resumed would skip the check of a client's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        _load_pair(context, self._certificate, self._key)
        return context


def _warn(server: ssl.SSLContext, certificate: Path) -> None:
    """Log a warning if clients will refuse the certificate whoever signed it: because it has expired, for instance.

    Found out by a handshake in memory with a client that trusts the certificate itself.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cafile=certificate)
    try:
        _shake_hands(client, server)
    except ssl.SSLCertVerificationError as error:
        _logger.warning("%s: clients will refuse it: %s", certificate, error.verify_message)
    except ssl.SSLError as error:
        raise CertificateError(f"{certificate} cannot be used: {error.reason or error}") from error


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    for _ in range(MOST_FLIGHTS):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return
