# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that the runtime can, the inventory can say; what nothing knows is refused by preflight."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.runtime_options import (
    option_problems,
    runtime_access,
)

OPTIONS: dict[str, Any] = {"inference_runtime_listen_address": "127.0.0.1"}
BROKER = {"host": "broker", "ca_certificate_file": "ca.crt"}


def problems(variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
    told = OPTIONS | {f"inference_runtime_{name}": value for name, value in options.items()}
    return [str(problem) for problem in option_problems(told, variables or {})]


def test_the_defaults_are_right() -> None:
    assert problems(mqtt={}, engine={}, limits={}, access=[]) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mqtt": {**BROKER, "certificate": "x"}}, "did you mean certificate_file"),
        ({"mqtt": {**BROKER, "certificate_file": "x"}}, "The key certificate_file needs key_file"),
        ({"mqtt": {**BROKER, "password": "x"}}, "The key password needs username"),
        ({"mqtt": {"port": 1883}}, "The key host is missing"),
        ({"mqtt": {"host": "broker"}}, "would reach the broker in clear"),
        ({"mqtt": {**BROKER, "receive_maximum": 0}}, "minimum is 1"),
        ({"limits": {"tensor": 65}}, "did you mean tensors"),
        ({"limits": {"tensors": "65"}}, "give a whole number"),
        ({"engine": {"optimization": "most"}}, "use one of all, extended, basic, disable"),
        ({"access": [{"token": "x"}]}, "The key models is missing"),
        ({"access": [{"token": "x", "models": ["digits"]}]}, "the host's own checks have none"),
        ({"access": [{"certificate_name": "x", "models": ["*"]}]}, "no authority of client certificates is known"),
        ({"listen_address": "0.0.0.0"}, "listen in clear or without a check"),  # noqa: S104
        ({"listen_address": "::", "tls_certificate_file": "x"}, "listen in clear or without a check"),
        ({"tls_certificate_file": "x", "tls_client_ca_file": "ca.crt"}, "inference_runtime_tls_check_certificate_file"),
    ],
)
def test_what_the_runtime_would_refuse_is_refused_before(options: dict[str, Any], words: str) -> None:
    (problem,) = problems(**options)
    assert words in problem
    assert f"inference_runtime_{next(iter(options))}" in problem or "inference_runtime_tls_client_ca_file" in problem


@pytest.mark.parametrize("address", ["127.0.0.300", "", "http://0.0.0.0", "a b", "10.0.0"])
def test_what_is_no_address_is_not_told_to_use_tls(address: str) -> None:
    (problem,) = problems(listen_address=address)
    assert "no address at inference_runtime_listen_address" in problem
    assert "give an IP address" in problem
    assert "tls" not in problem


@pytest.mark.parametrize("host", ["mqtt://broker", "10.0.0.300", "u:S3CRETxyz@broker"])
def test_a_broker_is_named_alone(host: str) -> None:
    for mqtt in ({"host": host}, {**BROKER, "host": host}):
        (problem,) = problems(mqtt=mqtt)
        assert "neither a name nor an IP address at inference_runtime_mqtt.host" in problem
        assert host not in problem


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_protection(address: str) -> None:
    assert problems(listen_address=address) == []


def test_a_secret_is_in_no_message() -> None:
    both = [{"token": "hunter2", "certificate_name": "press", "models": ["*"]}, {"token": 4711, "models": [1]}]
    found = problems(access=both, mqtt={"host": 1, "username": "x", "password": "hunter2"})
    assert len(found) == 3
    assert not any("hunter2" in problem or "4711" in problem for problem in found)


@pytest.mark.parametrize(
    "options",
    [
        {"access": [{"tokn": "S3CRETxyz", "models": ["a"]}]},
        {"access": ["S3CRETxyz"]},
        {"access": "S3CRETxyz"},
        {"access": [{"token": "x", "models": "S3CRETxyz"}]},
        {"access": [{"token": ["S3CRETxyz"], "models": ["a"]}]},
        {"access": [{"certificate_name": 5377381, "models": ["a"]}]},
        {"mqtt": "S3CRETxyz"},
        {"mqtt": {"host": "mqtt://u:S3CRETxyz@10.0.0.1"}},
        {"mqtt": {**BROKER, "pasword": "S3CRETxyz"}},
        {"mqtt": {**BROKER, "port": "S3CRETxyz"}},
        {"mqtt": {**BROKER, "username": 5377381}},
    ],
)
def test_a_secret_in_the_wrong_place_is_in_no_message(options: dict[str, Any]) -> None:
    found = problems(**options)
    assert found
    assert not any("S3CRET" in problem or "5377381" in problem for problem in found)
    assert all(f"inference_runtime_{next(iter(options))}" in problem for problem in found)


def test_a_variable_that_the_role_does_not_have() -> None:
    (problem,) = problems(
        {"inference_runtime_mqqt": {}, "inference_runtime_result": {}, "inference_runtime_engine": {}}
    )
    assert "did you mean inference_runtime_mqtt" in problem


def test_a_token_is_no_part_of_the_configuration() -> None:
    grants = [{"token": "hunter2", "models": ["digits"]}, {"certificate_name": "press", "models": ["*"]}]
    found = runtime_access(grants, "/etc/edgeml/runtime")
    assert found == {
        "grants": [{"models": ["digits"], "token_file": "/etc/edgeml/runtime/access_0_token"}, grants[1]],
        "secrets": [{"name": "access_0_token", "content": "hunter2"}],
    }
