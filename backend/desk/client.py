"""From where a request comes, past the reverse proxies that are trusted."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from flask import request

from backend.services import services

Address = IPv4Address | IPv6Address


def client_address() -> str:
    """The browser's address. What X-Forwarded-For says counts as far as trusted proxies have written it."""
    nearest = _read(request.remote_addr or "")
    for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        further = _read(hop.strip())
        if nearest is None or further is None or not _is_trusted(nearest):
            break
        nearest = further
    return str(nearest or "unknown")


def client_network() -> str:
    """What one household can have many of: its IPv4 address, or its /64 of IPv6."""
    address = client_address()
    return str(ip_network((address, 64), strict=False)) if ":" in address else address


def is_from_proxy() -> bool:
    """Whether a trusted proxy handed this request on."""
    address = _read(request.remote_addr or "")
    return address is not None and _is_trusted(address)


def _is_trusted(address: Address) -> bool:
    return any(address in ip_network(network) for network in services().settings.desk.trusted_proxies)


def _read(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None  # of a socket for both
    return mapped or address
