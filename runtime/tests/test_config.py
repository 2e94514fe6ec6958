# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what is taken, and what each mistake is answered with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgeml_runtime.config_file import load_config
from edgeml_runtime.errors import ConfigurationError

MODEL = {"name": "digits", "version": "1.0.0", "digest": "sha256:" + "a" * 64, "path": "/models/a"}
MINIMAL = {"listen": {"rest": ["127.0.0.1:8000"]}, "models": [MODEL]}


def write(directory: Path, document: object) -> Path:
    file = directory / "runtime.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def test_minimal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.engine.threads, config.log_level, config.limits.body_bytes) == (1, "info", 64 * 1024 * 1024)
    assert (config.tls, config.grants, config.grpc, config.metrics) == (None, (), (), ())
    assert [(address.host, address.port, address.path) for address in config.rest] == [("127.0.0.1", 8000, "")]
    assert (config.models[0].name, config.models[0].path) == ("digits", Path("/models/a"))


def test_full(tmp_path: Path) -> None:
    for name in ("crt", "key", "ca"):
        (tmp_path / name).write_text(name)
    (tmp_path / "token").write_text("secret\n")
    document = {
        "listen": {
            "rest": ["0.0.0.0:8000", "[::1]:8000", "localhost:8010", "unix:/run/edgeml/rest.sock"],
            "grpc": ["[::]:8001"],
            "metrics": ["192.0.2.1:8002"],
        },
        "tls": {"certificate": f"{tmp_path}/crt", "key": f"{tmp_path}/key", "client_ca": f"{tmp_path}/ca"},
        "bearer_token_file": f"{tmp_path}/token",
        "models": [MODEL],
        "engine": {"threads": 4},
        "log_level": "debug",
        "limits": {"body_bytes": 1000},
    }
    config = load_config(write(tmp_path, document))
    assert [(address.host, address.port, address.path) for address in config.rest] == [
        ("0.0.0.0", 8000, ""),  # noqa: S104
        ("::1", 8000, ""),
        ("127.0.0.1", 8010, ""),
        ("", 0, "/run/edgeml/rest.sock"),
    ]
    assert config.tls is not None
    assert config.tls.client_ca == tmp_path / "ca"
    assert [(grant.token, grant.models, grant.manage) for grant in config.grants] == [("secret", None, True)]
    assert (config.engine.threads, config.log_level, config.limits.body_bytes) == (4, "debug", 1000)


def changed(**keys: Any) -> dict[str, Any]:
    return {**MINIMAL, **keys}


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ("{", ["text that is no JSON", "a JSON object"]),
        ([], ["the document: seen []; allowed: an object"]),
        ({"models": [MODEL]}, ["listen: seen no such key", "add the key"]),
        (changed(engin={}), ["engin: seen an unknown key", "did you mean 'engine'?", "Correct its name"]),
        (changed(listen={}), ["listen: seen no rest and no grpc listener"]),
        (
            changed(listen={"http": []}),
            ["listen.http: seen an unknown key; allowed: the keys admin, grpc, metrics, rest"],
        ),
        (changed(listen={"rest": "127.0.0.1:8000"}), ['listen.rest: seen "127.0.0.1:8000"; allowed: a list']),
        (changed(listen={"rest": [8000]}), ["listen.rest[0]: seen 8000; allowed: a string"]),
        (changed(listen={"rest": ["127.0.0.1"]}), ["listen.rest[0]: seen '127.0.0.1'", "'IP:PORT'"]),
        (changed(listen={"rest": ["127.0.0.1:70000"]}), ["a port from 1 to 65535"]),
        (changed(listen={"rest": ["127.0.0.1:"]}), ["a port from 1 to 65535"]),
        (changed(listen={"rest": ["edge.example.internal:8000"]}), ["listen.rest[0]", "'IP:PORT'"]),
        (changed(listen={"rest": ["::1:8000"]}), ["brackets"]),
        (changed(listen={"rest": ["unix:rest.sock"]}), ["an absolute path"]),
        (changed(listen={"rest": ["unix:/" + "x" * 107]}), ["at most 107 bytes"]),
        (changed(listen={"rest": ["127.0.0.1:1"], "grpc": ["127.0.0.1:1"]}), ["'127.0.0.1:1' more than once"]),
        (changed(tls={"certificate": "/nonexistent"}), ["tls.key: seen no such key"]),
        (changed(tls={"certificate": "/nonexistent", "key": "/nonexistent"}), ["tls.certificate", "No such file"]),
        (changed(bearer_token_file="/nonexistent"), ["bearer_token_file: seen '/nonexistent' (No such file"]),
        (changed(models=[]), ["models: seen no model"]),
        (changed(models={}), ["models: seen {}; allowed: a list"]),
        (changed(models=[MODEL, MODEL]), ["models[1].name: seen 'digits'", "each version of a model once"]),
        (changed(models=[{**MODEL, "name": "a/b"}]), ["models[0].name: seen 'a/b'"]),
        (changed(models=[{**MODEL, "version": 1.1}]), ["models[0].version: seen 1.1; allowed: a string"]),
        (changed(models=[{**MODEL, "version": "1.1"}]), ["models[0].version: seen '1.1'", "three parts"]),
        (changed(models=[{**MODEL, "digest": "sha256:A"}]), ["models[0].digest", "64 lower-case hexadecimal"]),
        (changed(models=[{**MODEL, "protocols": ["rest", "http"]}]), ["models[0].protocols[1]: seen 'http'", "mqtt"]),
        (changed(models=[{**MODEL, "protocols": []}]), ["models[0].protocols: seen no protocol"]),
        (changed(models=[{**MODEL, "path": None}]), ["models[0].path: seen null"]),
        (changed(engine={"threads": 0}), ["engine.threads: seen 0; allowed: an integer from 1"]),
        (changed(engine={"threads": True}), ["engine.threads: seen true"]),
        (changed(engine={"threads": 1.5}), ["engine.threads: seen 1.5"]),
        (changed(log_level="loud"), ["log_level: seen 'loud'; allowed: debug, info, warning, error"]),
        (changed(limits={"body_bytes": -1}), ["limits.body_bytes: seen -1"]),
    ],
)
def test_mistakes(tmp_path: Path, document: object, parts: list[str]) -> None:
    file = write(tmp_path, document)
    with pytest.raises(ConfigurationError) as caught:
        load_config(file)
    message = str(caught.value)
    for part in (str(file), *parts):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["rest", "grpc", "metrics"])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]"])  # noqa: S104
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("token", [False, True])
def test_open_listener_needs_tls_and_a_client_check(
    tmp_path: Path, kind: str, host: str, tls: bool, token: bool
) -> None:
    for name in ("crt", "key", "token"):
        (tmp_path / name).write_text(name)
    document = changed(listen={"rest": ["127.0.0.1:8000"], kind: [f"{host}:8009"]})
    if tls:
        document["tls"] = {"certificate": f"{tmp_path}/crt", "key": f"{tmp_path}/key"}
    if token:
        document["bearer_token_file"] = f"{tmp_path}/token"
    file = write(tmp_path, document)
    if tls and token:
        assert getattr(load_config(file), kind)[0].port == 8009
        return
    with pytest.raises(ConfigurationError, match=rf"listen\.{kind}\[0\].*only TLS with tls.client_ca or bearer"):
        load_config(file)


@pytest.mark.parametrize("text", ["", "\n", "two words", "tab\tinside", "ümlaut"])
def test_token_is_never_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, changed(bearer_token_file=f"{tmp_path}/token")))
    assert "bearer_token_file" in str(caught.value)
    assert not text.strip() or text not in str(caught.value)


def test_process_refuses_with_exit_code_2(tmp_path: Path) -> None:
    file = write(tmp_path, changed(listen={"rest": ["0.0.0.0:21000"]}))
    command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"edgeml-runtime: {file}: listen.rest[0]: seen '0.0.0.0:21000' with no TLS")
