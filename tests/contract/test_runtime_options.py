# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that the runtime can be told, the inventory can say, and the runtime reads what the role writes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import SCHEMAS
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.runtime_options import known_variables

REPOSITORY = Path(__file__).parents[2]
ROLE = REPOSITORY / "roles" / "inference_runtime"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of the runtime, which is a package of its own."""
    monkeypatch.syspath_prepend(REPOSITORY / "runtime" / "src")
    return lambda name: importlib.import_module(f"edgeml_runtime.{name}")


def test_schema_and_specification_and_runtime_know_the_same(runtime: Any) -> None:
    schema = json.loads((SCHEMAS / "variables.schema.json").read_text())["properties"]
    specification = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(known_variables()) == set(specification)
    for name in ("mqtt", "engine", "limits"):
        told = schema[f"inference_runtime_{name}"]["properties"]
        assert set(told) == set(specification[f"inference_runtime_{name}"]["options"]), name
    grant = schema["inference_runtime_access"]["items"]["properties"]
    assert set(grant) == set(specification["inference_runtime_access"]["options"])
    assert set(specification["inference_runtime_limits"]["options"]) == {
        field.name for field in fields(runtime("config").Limits)
    }
    assert set(specification["inference_runtime_engine"]["options"]) == {
        field.name for field in fields(runtime("serving").EngineOptions)
    }
    renamed = {"ca": "ca_certificate_file", "certificate": "certificate_file", "key": "key_file"}
    assert set(specification["inference_runtime_mqtt"]["options"]) == {
        renamed.get(field.name, field.name) for field in fields(runtime("config").Mqtt)
    }


def test_the_runtime_gets_all_that_the_inventory_says(tmp_path: Path, runtime: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    server = authority.issue_cert("camera-1")
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "one.crt"))
    server.private_key_pem.write_to_path(str(tmp_path / "one.key"))
    config = configured(
        runtime,
        tmp_path,
        tls_certificate_file=str(tmp_path / "one.crt"),
        tls_key_file=str(tmp_path / "one.key"),
        tls_client_ca_file=str(tmp_path / "ca.crt"),
        tls_check_certificate_file=str(tmp_path / "one.crt"),
        tls_check_key_file=str(tmp_path / "one.key"),
        bearer_token="all",
        access=[
            {"token": "some", "models": ["digits"], "manage": True},
            {"certificate_name": "press-7", "models": ["*"]},
        ],
        engine={"threads": 2},
        limits={"tensors": 65, "idle_seconds": 5},
        log_requests=True,
        drain_seconds=30,
        mqtt={
            "host": "broker",
            "ca_certificate_file": str(tmp_path / "ca.crt"),
            "certificate_file": str(tmp_path / "one.crt"),
            "key_file": str(tmp_path / "one.key"),
            "username": "press-7",
            "password": "secret",
            "keep_alive_seconds": 7,
            "receive_maximum": 8,
            "session_expiry_seconds": 9,
            "publish_results": True,
        },
    )
    assert (config.limits.tensors, config.limits.idle_seconds) == (65, 5)
    assert (config.log_requests, config.drain_seconds, config.engine.threads) == (True, 30, 2)
    assert config.tls is not None
    assert config.tls.client_ca is not None
    assert config.tls.client_ca.read_bytes() == (tmp_path / "ca.crt").read_bytes()
    grants = [(grant.token, grant.certificate_name, grant.models, grant.manage) for grant in config.grants]
    assert grants == [
        ("all", None, None, True),
        ("some", None, frozenset({"digits"}), True),
        (None, "press-7", None, False),
    ]
    broker = config.mqtt
    assert broker is not None
    assert (broker.port, broker.username, broker.password, broker.device) == (8883, "press-7", "secret", "camera-1")
    assert (broker.keep_alive_seconds, broker.receive_maximum, broker.session_expiry_seconds) == (7, 8, 9)
    assert broker.publish_results
    assert broker.certificate is not None
    assert broker.certificate.read_bytes() == (tmp_path / "one.crt").read_bytes()


def test_without_options_the_configuration_is_as_it_was(tmp_path: Path) -> None:
    document = templated(tmp_path)("{{ __inference_runtime_configuration }}")
    assert document == {"tls": None, "bearer_token_file": None, "engine": {}, "log_level": "info"}


def templated(directory: Path, **options: Any) -> Any:
    """Return a function that templates a text with the role's variables, its secrets in `directory`/secrets."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for file in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / file / "main.yml"), trusted_as_template=True)
    variables |= {f"inference_runtime_{name}": value for name, value in options.items()}
    variables |= {
        "inventory_hostname": "camera-1",
        "inference_runtime_configuration_directory": str(directory / "secrets"),
    }
    templar = Templar(loader=loader, variables=variables)
    return lambda text: templar.template(trust_as_template(text))


def configured(runtime: Any, directory: Path, **options: Any) -> Any:
    """Return what the runtime itself makes of the role's variables, with its secrets in their files."""
    template = templated(directory, **options)
    (directory / "secrets").mkdir()
    for secret in template("{{ __inference_runtime_secrets }}"):
        (directory / "secrets" / secret["name"]).write_text(secret["content"])
    document = template("{{ __inference_runtime_configuration }}") | {
        "mqtt": template("{{ __inference_runtime_mqtt }}"),
        "listen": {"rest": ["0.0.0.0:8000"]},
        "models": [{"name": "digits", "version": "1.0.0", "path": "digits"}],
    }
    return runtime("config_file").read_config(json.loads(json.dumps(document)), "runtime.json")
