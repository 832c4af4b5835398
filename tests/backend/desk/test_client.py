"""From where a request comes."""

from __future__ import annotations

import pytest

from backend.desk.client import client_address, client_network, is_from_proxy

TRUSTED = ["10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "10.1.1.1", "192.0.2.1"),  # nobody whom we trust says so
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.9", "192.0.2.9"),
        ("10.0.0.1", "192.0.2.66, 192.0.2.9", "192.0.2.9"),  # the first is the browser's own claim
        ("10.0.0.1", "192.0.2.66, 192.0.2.9, 10.0.0.2", "192.0.2.9"),
        ("10.0.0.1", "192.0.2.9, nonsense", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.9:4711", "10.0.0.1"),
        ("::ffff:10.0.0.1", "192.0.2.9", "192.0.2.9"),
        ("2001:db8::1", "2a00::7", "2a00::7"),
        ("", "192.0.2.9", "unknown"),
    ],
)
def test_the_browsers_address(make_site, remote, forwarded, address):
    app = make_site(desk={"trusted_proxies": TRUSTED}).app
    with app.test_request_context(
        "/", headers={"X-Forwarded-For": forwarded}, environ_overrides={"REMOTE_ADDR": remote}
    ):
        assert client_address() == address


@pytest.mark.parametrize(
    ("remote", "network", "trusted"),
    [
        ("192.0.2.1", "192.0.2.1", False),
        ("2a00:1:2:3:4::5", "2a00:1:2:3::/64", False),
        ("10.9.9.9", "10.9.9.9", True),
        ("unix", "unknown", False),
    ],
)
def test_the_network_and_whether_it_is_a_proxy(make_site, remote, network, trusted):
    app = make_site(desk={"trusted_proxies": TRUSTED}).app
    with app.test_request_context("/", environ_overrides={"REMOTE_ADDR": remote}):
        assert client_network() == network
        assert is_from_proxy() is trusted
