# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and addresses as people write them, IPv6 among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import (
    address,
    address_host,
    address_port,
    alternative_name,
    local_address,
    server_name,
)

ROLES = Path(__file__).parents[4] / "roles"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("store.example", "store.example", None),
        ("store.example:5000", "store.example", 5000),
        ("192.0.2.1:5000", "192.0.2.1", 5000),
        ("[2001:db8::5]:5000", "2001:db8::5", 5000),
        ("[::1]", "::1", None),
        ("::1", "::1", None),
        ("2001:db8::5:5000", "2001:db8::5:5000", None),
    ],
)
def test_parts_of_an_address(text: str, host: str, port: int | None) -> None:
    assert (address_host(text), address_port(text)) == (host, port)
    assert address_port(text, 443) == (port or 443)
    assert address_host(address(host, 443)) == host
    assert address_port(address(host, 443)) == 443


def test_a_server_is_asked_on_loopback_where_it_listens_everywhere() -> None:
    assert [local_address(one) for one in ("0.0.0.0", "::", "[::]", "[::1]", "10.0.0.1", "::5")] == [  # noqa: S104
        "127.0.0.1", "::1", "::1", "::1", "10.0.0.1", "::5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "carried", "entry"),
    [
        ("camera-7", "camera-7", "DNS:camera-7"),
        ("this_machine", "this-machine", "DNS:this-machine"),
        ("hall 3/ press_7", "hall-3-press-7", "DNS:hall-3-press-7"),
        ("_", "host", "DNS:host"),
        ("192.0.2.1", "192.0.2.1", "IP:192.0.2.1"),
        ("2001:DB8::5", "2001:DB8::5", "IP:2001:db8::5"),
    ],
)
def test_names_of_an_inventory_in_certificates(name: str, carried: str, entry: str) -> None:
    assert server_name(name) == carried
    assert alternative_name(server_name(name)) == entry


def test_a_zone_is_no_part_of_a_certificate() -> None:
    assert alternative_name("fe80::1%eth0") == "IP:fe80::1"
    assert alternative_name("[2001:db8::5]:5000") == "IP:2001:db8::5"


def rendered(role: str, **variables: Any) -> Templar:
    loader = DataLoader()
    found: dict[str, Any] = {}
    for file in sorted(ROLES.glob(f"{role}/[dv]*/main.yml")):
        found |= loader.load_from_file(str(file), trusted_as_template=True)
    return Templar(loader=loader, variables=found | variables)


def test_certificate_of_a_store_at_an_ipv6_address() -> None:
    templar = rendered(
        "private_ca",
        inventory_hostname="this_machine",
        ansible_host="::1",
        edgeml_store="store.edgeml.internal:5000",
        edgeml_store_address="[::1]:5000",
        edgeml_registry="registry.edgeml.internal:5443",
        group_names=["stores", "mirrors"],
    )
    assert templar.template(trust_as_template("{{ private_ca_certificate_names }}")) == [
        "DNS:this-machine", "IP:127.0.0.1", "IP:::1", "DNS:store.edgeml.internal", "DNS:registry.edgeml.internal",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("listen", "published", "asked"),
    [
        ("0.0.0.0", "0.0.0.0:5443:5443", "https://127.0.0.1:5443"),  # noqa: S104
        ("::", "[::]:5443:5443", "https://[::1]:5443"),
        ("2001:db8::5", "[2001:db8::5]:5443:5443", "https://[2001:db8::5]:5443"),
        ("10.0.0.1", "10.0.0.1:5443:5443", "https://10.0.0.1:5443"),
    ],
)
def test_a_mirror_at_an_address(listen: str, published: str, asked: str) -> None:
    templar = rendered(
        "site_mirror", edgeml_registry="registry.edgeml.internal:5443", site_mirror_listen_address=listen
    )
    (task,) = DataLoader().load_from_file(str(ROLES / "site_mirror/tasks/service.yml"), trusted_as_template=True)
    options = task["edgeml.fleet.service_container"]
    assert templar.template(options["publish"]) == [published]
    assert templar.template(options["endpoint"]) == asked
    # Inside the container it is another network: the host's address has no meaning there, wherever it was set.
    assert "listen_address" not in (ROLES / "site_mirror/templates/nginx.conf.j2").read_text()


def test_a_store_is_asked_without_a_proxy() -> None:
    (block,) = DataLoader().load_from_file(str(ROLES / "model_store/tasks/verify.yml"), trusted_as_template=True)
    assert block["block"][0]["ansible.builtin.uri"]["use_proxy"] is False
