# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints, and the tokens that they may carry."""

from __future__ import annotations

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.grpc import GrpcClient
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.rest import RestClient

SECRET = "correct-horse-battery"


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("http://127.0.0.1:22000", RestClient),
        ("http://[::1]:22000/", RestClient),
        ("https://host.example:22000", RestClient),
        ("http+unix:///run/rest.sock", RestClient),
        ("grpc://127.0.0.1:22000", GrpcClient),
        ("grpc://[::1]:22000", GrpcClient),
        ("grpcs://host.example:22000", GrpcClient),
        ("grpc+unix:///run/grpc.sock", GrpcClient),
    ],
)
def test_scheme_chooses_the_client(endpoint: str, kind: type) -> None:
    with connect(endpoint) as client:
        assert isinstance(client, kind)
        assert client.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host:8000",
        "http://host",
        "http://:8000",
        "http://host:port",
        "http://host:70000",
        "http://[::1:8000",
        "http://host:8000/prefix",
        "http://host:8000?query",
        "http+unix://run/rest.sock",
        "grpc+unix:rest.sock",
    ],
)
def test_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(FleetError, match="not an address of an inference server") as failure:
        connect(endpoint)
    assert repr(endpoint) in failure.value.seen


def test_password_in_an_endpoint_is_not_shown() -> None:
    with pytest.raises(FleetError) as failure:
        connect(f"http://user:{SECRET}@host:8000")
    assert SECRET not in str(failure.value)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_token_does_not_cross_a_network_in_clear(scheme: str) -> None:
    with pytest.raises(FleetError, match="clear text") as failure:
        connect(f"{scheme}://192.0.2.10:8000", bearer_token=SECRET)
    assert SECRET not in str(failure.value)
    for host in ("127.0.0.1", "localhost", "[::1]"):
        connect(f"{scheme}://{host}:8000", bearer_token=SECRET).close()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_missing_ca_file_is_named(scheme: str) -> None:
    with pytest.raises(FleetError, match=r"ca_file cannot be used at /nonexistent/ca\.crt"):
        connect(f"{scheme}://127.0.0.1:22000", ca_file="/nonexistent/ca.crt")
