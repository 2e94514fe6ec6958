# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registries behind a proxy of the controller, and what is reached without it."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.proxy import Proxy, excepts, is_local, proxy_for
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.tests.support import connect_proxy
from ansible_collections.edgeml.fleet.tests.support.connect_proxy import ConnectProxy
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Server
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils.conftest import Serve

NAME = "registry.edgeml.internal"  # which no name service knows here: the proxy does


@pytest.fixture
def server(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made: Server = serve(lambda request: Answer(200, b"{}"))
    return made


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    made, stop = connect_proxy.start(int(server.address.rpartition(":")[2]))
    monkeypatch.setenv("https_proxy", made.url)
    yield made
    stop()


def test_a_registry_behind_a_proxy(server: Server, proxy: ConnectProxy) -> None:
    registry = Registry(NAME, ca_file=server.ca_file)
    registry.ping()
    registry.ping()
    registry.close()
    assert proxy.tunnels == [f"{NAME}:443"], "the connection is kept"
    assert [request.path for request in server.requests] == ["/v2/", "/v2/"]
    assert server.requests[0].headers["Host"] == NAME
    assert "Proxy-Authorization" not in server.requests[0].headers


def test_a_proxy_that_asks_for_a_password(server: Server, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//fleet:s%20cret@"))
    Registry(NAME, ca_file=server.ca_file).ping()
    assert proxy.logins == ["Basic " + base64.b64encode(b"fleet:s cret").decode()]
    proxy.status = 407
    with pytest.raises(FleetError, match="The proxy asks for a user name and password") as caught:
        Registry(NAME, ca_file=server.ca_file).ping()
    assert proxy.url in str(caught.value)
    assert "cret@" not in str(caught.value)


def test_a_proxy_that_refuses(server: Server, proxy: ConnectProxy) -> None:
    proxy.status = 403
    with pytest.raises(FleetError, match="does not lead to the registry") as caught:
        Registry(NAME, ca_file=server.ca_file).ping()
    assert proxy.url in str(caught.value)
    assert f"add {NAME} to no_proxy" in caught.value.remedy


def test_a_proxy_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(FleetError, match=f"The proxy cannot be reached at http://127.0.0.1:{port}"):
        Registry(NAME, ca_file=server.ca_file).ping()


def test_an_untrusted_registry_names_the_way(server: Server, proxy: ConnectProxy) -> None:
    with pytest.raises(FleetError, match=f"not trusted at https://{NAME}/v2/ through the proxy {proxy.url}"):
        Registry(NAME).ping()


def test_what_is_local_needs_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    server.registry().ping()
    port = server.address.rpartition(":")[2]
    Registry(f"{NAME}:{port}", ca_file=server.ca_file, ip_address="127.0.0.1").ping()
    assert len(server.requests) == 2


def test_what_no_proxy_excepts(server: Server, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "other.example, .edgeml.internal")
    with pytest.raises(FleetError, match="cannot be reached"):
        Registry(NAME, ca_file=server.ca_file).ping()
    assert proxy.tunnels == []


@pytest.mark.parametrize(
    ("entry", "host", "port", "expected"),
    [
        ("registry.example", "registry.example", "443", True),
        ("registry.example", "other.example", "443", False),
        ("example", "registry.example", "443", True),
        (".example", "registry.example", "443", True),
        ("*.example", "REGISTRY.example", "443", True),
        ("registry.example:5000", "registry.example", "443", False),
        ("registry.example:5000", "registry.example", "5000", True),
        ("192.0.2.0/24", "192.0.2.7", "443", True),
        ("192.0.2.7", "192.0.2.8", "443", False),
        ("2001:db8::/32", "2001:db8::5", "443", True),
        ("[2001:db8::5]", "2001:db8::5", "443", True),
        ("*", "anything", "443", True),
        ("", "anything", "443", False),
    ],
)
def test_entries_of_no_proxy(entry: str, host: str, port: str, expected: bool) -> None:
    assert excepts(entry, host, port) is expected


def test_addresses_of_this_host() -> None:
    assert [host for host in ("localhost", "127.0.0.1", "127.0.0.9", "::1") if not is_local(host)] == []
    assert [host for host in ("192.0.2.1", "2001:db8::5", "registry.example") if is_local(host)] == []


def test_the_environment_decides() -> None:
    def shown(**environment: str) -> str | None:
        found = proxy_for("registry.example", 443, environment)
        return found.shown if found else None

    assert shown() is None
    assert shown(http_proxy="http://a:1") is None
    assert shown(HTTPS_PROXY="http://a:1", https_proxy="b:2") == "http://b:2"
    assert shown(ALL_PROXY="http://user:secret@[::1]:3128/") == "http://[::1]:3128"
    assert shown(https_proxy="http://a", NO_PROXY="example") is None


@pytest.mark.parametrize("url", ["https://proxy:3128", "socks5://u:secret@proxy:1080", "http://", "http://proxy:x"])
def test_proxies_that_cannot_be_used(url: str) -> None:
    with pytest.raises(FleetError, match="The proxy cannot be used") as caught:
        Proxy(url)
    assert "secret" not in str(caught.value)


def test_a_copied_inventory_is_told_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"edgeml\.fleet\.certificates"):
        Registry("store.example", ca_file=str(tmp_path / "ca.crt"))
