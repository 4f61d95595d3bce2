"""The networks from which clients may come. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from berkeleydb_storage.errors import OptionError

__all__ = ["Networks", "host_address"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Host = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Networks:
    """A list of networks. Immutable. Clients on Unix sockets have no host: it is not for them."""

    def __init__(self, networks: Iterable[str] | None = None) -> None:
        """Parse the list.

        Args:
            networks: such as "10.0.0.0/8" or, one host, "::1"; None or empty: everybody may come.

        Raises:
            OptionError: one is malformed.
        """
        if isinstance(networks, str):
            raise OptionError(f"networks are a list of texts, such as [{networks!r}]")
        self._networks = tuple(_network(text) for text in networks or ())

    def admits(self, host: str) -> bool:
        """Return whether a client may come from this host.

        Args:
            host: as the socket tells it: an IPv4 or IPv6 address, the latter perhaps with a scope, or with an IPv4 one
                in it. What is none is admitted only where everybody is.
        """
        if not self._networks:
            return True
        found = host_address(host)
        return found is not None and any(found in network for network in self._networks)

    def __str__(self) -> str:
        return ", ".join(map(str, self._networks)) or "everywhere"


def host_address(host: str) -> _Host | None:
    """Return the address of a host: without its scope, an IPv4 one where it is one in IPv6; None if it is none."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _network(text: str) -> _Network:
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise OptionError(f"{text!r} is no network: {_advice(text, error)}") from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        inner = int(found.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((inner, found.prefixlen - _MAPPED.prefixlen))
    return found


def _advice(text: str, error: ValueError) -> str:
    try:
        return f"write {ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        return f'it is such as "10.0.0.0/8" or "::1" ({error})'
