"""Which addresses images may be fetched from.

Task data is written by whoever may import tasks, so an image's URL must not make this server read from networks
that only it can reach. Names are resolved here, each address is checked, and the connection goes to a checked
address itself: a name that resolves differently a moment later (DNS rebinding) gains nothing.

Link-local addresses, which serve cloud machines their credentials, stay refused even where private ones are
allowed: no image lives there.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult

from backend.label_studio.images.errors import (
    ForbiddenAddressError,
    ImageTimeoutError,
    ImageUnavailableError,
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], list[str]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("168.63.129.16/32"),
)
# Not for the public either, though `ipaddress` of some Python versions calls them global.
_RESERVED = (
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("64:ff9b:1::/48"),
    ipaddress.ip_network("2001::/23"),
    ipaddress.ip_network("3fff::/20"),
)
_LINK_LOCAL = "a link-local address, which serves machines their credentials"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: what a token belongs to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, parts: SplitResult) -> Origin:
        """The origin of a split http(s) URL, with the default port filled in.

        Raises:
            ValueError: no host, or a port that is none.
        """
        scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".").lower()
        if scheme not in _DEFAULT_PORTS or not host:
            raise ValueError("not an http address with a host")
        return cls(scheme, host, parts.port or _DEFAULT_PORTS[scheme])


def refusal(address: IPAddress, *, allow_private: bool) -> str | None:
    """Why nothing is fetched from an address; None where it may be."""
    inner = _embedded(address)
    if inner is not None:
        return refusal(inner, allow_private=allow_private)
    if _within(address, _METADATA):
        return _LINK_LOCAL
    if address.is_multicast or address.is_unspecified:
        return "no address of one machine"
    if allow_private or (address.is_global and not _within(address, _RESERVED)):
        return None
    if address.is_loopback:
        return "this machine itself (loopback)"
    return "a private or reserved address"


def _within(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _embedded(address: IPAddress) -> IPAddress | None:
    """The IPv4 address that an IPv6 address stands for."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None


def resolve_name(host: str, port: int) -> list[str]:
    """The system's addresses for a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def checked_addresses(host: str, port: int, *, allow_private: bool, resolver: Resolver, timeout_s: float) -> list[str]:
    """Resolve a host and keep what may be fetched from.

    Args:
        host: name or literal address.
        port: TCP port.
        allow_private: allow addresses that are not public.
        resolver: how names are resolved.
        timeout_s: how long that may take; the system's resolver knows no limit of its own.

    Returns:
        At least one literal address.

    Raises:
        ForbiddenAddressError: all are refused.
        ImageUnavailableError: the name is not known.
        ImageTimeoutError: resolving took too long.
    """
    texts = _resolve_in_time(host, port, resolver, timeout_s)
    reason = "not an address"
    allowed = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            continue
        refused = refusal(address, allow_private=allow_private)
        if refused is None:
            allowed.append(text)
        else:
            reason = refused
    if not allowed:
        remedy = "" if reason == _LINK_LOCAL or allow_private else ". VLM_ALLOW_PRIVATE_ADDRESSES=true allows it"
        raise ForbiddenAddressError(f"images are not fetched from {host}: it is {reason}{remedy}")
    return allowed


def _resolve_in_time(host: str, port: int, resolver: Resolver, timeout_s: float) -> list[str]:
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(resolver(host, port))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=resolve, name="resolve-image-host", daemon=True).start()
    try:
        answer = answers.get(timeout=max(timeout_s, 0.001))
    except queue.Empty:
        raise ImageTimeoutError(f"the name {host} was not resolved in time") from None
    if isinstance(answer, Exception) or not answer:
        raise ImageUnavailableError(f"the name {host} is not known to this machine", temporary=True)
    return answer
