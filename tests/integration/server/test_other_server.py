# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""MLServer, which knows nothing of this collection: published, mirrored, gated, released, checked and removed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import sign
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_ports
from ansible_collections.edgeml.fleet.tests.support.content import SiteMirror, Store, run_module
from ansible_collections.edgeml.fleet.tests.support.cosign import KeyPair, make_key, sign_lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
NAME = "edgeml-runtime-mlserver"
START = "from mlserver.cli import main; main()"


def run(name: str, arguments: dict[str, Any], **options: bool) -> dict[str, Any]:
    return run_module(name, arguments, interpreter=sys.executable, **options)


@pytest.fixture(scope="module")
def published(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The lock of the image and of a model for it, both in the store."""
    options = {"registry": store.options(), "architectures": ["amd64"]}
    image = run(
        "oci_image",
        {
            **options,
            "recipe": yaml.safe_load((HERE / "mlserver.yml").read_text()),
            "source_root": str(HERE),
            "cache": str(tmp_path_factory.mktemp("cache")),
            "repository": "edgeml/mlserver",
            "tag": "1.7.1",
        },
    )["image"]
    model = {"name": "digits", "version": "1.0.0", "platform": "mlserver", "source": str(HERE / "model")}
    entry = run("model_artifact", {**options, **model, "repository": "edgeml/models/digits"})
    return {
        "serial": 1,
        "registry": store.address,
        "images": {"mlserver": image},
        "models": {"digits": {"1.0.0": {"platform": "mlserver", "variants": {"default": entry}}}},
    }


@pytest.fixture(scope="module")
def key() -> KeyPair:
    return make_key()


@pytest.fixture(scope="module")
def signatures(
    published: dict[str, Any], key: KeyPair, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Sign the lock and its content, and return what hosts verify it by."""
    path = tmp_path_factory.mktemp("signature") / "fleet.lock.yml.sig"
    options = {"lock": published, "path": path, "key": key.private, "registry": store.options()}
    sign(options, check_mode=False, warn=pytest.fail)
    return {"trusted_keys": [key.public], "lock_signature": path.read_text()}


@pytest.fixture
def release(
    published: dict[str, Any], signatures: dict[str, Any], store: Store, mirror: SiteMirror, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """Options of a release that the mirror holds."""
    run(
        "mirror_sync",
        {
            "root": str(mirror.root),
            "lock": published,
            "store": store.options(),
            "architectures": ["amd64"],
            "signatures": signatures,
        },
    )
    image = published["images"]["mlserver"]["platforms"]["amd64"]
    entry = published["models"]["digits"]["1.0.0"]["variants"]["default"]
    ports = dict(zip(("rest", "grpc"), free_ports(2), strict=True))
    options = {
        "root": str(tmp_path / "edgeml"),
        "name": "mlserver",
        "lock": published,
        "signatures": signatures,
        "image": f"{mirror.address}/edgeml/mlserver@{image['digest']}",
        "image_size": image["size"],
        "ca_file": mirror.ca_file,
        "models": [
            {
                "name": "digits",
                "version": "1.0.0",
                "repository": entry["repository"],
                "digest": entry["blob"]["digest"],
                "size": entry["blob"]["size"],
                "golden_cases": entry["golden_cases"],
                "p95_ms": 60000,
                "protocol": "grpc",
            }
        ],
        "configuration": {"listen": {protocol: [f"127.0.0.1:{port}"] for protocol, port in ports.items()}},
        "server": {
            "command": ["-c", START, "start", "/mnt/models"],
            "environment": {"MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_METRICS_DIR": "/tmp"},  # noqa: S108
            "rest_port": 8080,
            "grpc_port": 8081,
            "user": "1000:1000",
        },
        "limits": {"memory_mb": 1024, "pids": 128},
    }
    yield options
    run("runtime_release", {"root": options["root"], "name": "mlserver", "state": "absent"})


def test_another_server_is_released_by_the_same_transaction(
    release: dict[str, Any], published: dict[str, Any], key: KeyPair
) -> None:
    assert published["models"]["digits"]["1.0.0"]["variants"]["default"]["golden_cases"] == 10
    engine = docker.from_env()
    assert run("runtime_release", release, check=True)["plan"]["action"] == "start"
    assert engine.containers.list(all=True, filters={"name": NAME}) == []

    # What nobody signed is not even pulled.
    unsigned = {**release, "signatures": {**release["signatures"], "lock_signature": ""}}
    assert run("runtime_release", unsigned, fails=True)["what"] == "The lock is not signed"
    assert release["image"] not in {name for image in engine.images.list() for name in image.attrs["RepoDigests"] or ()}
    assert not Path(release["root"]).exists()

    assert run("runtime_release", release)["changed"]
    assert not run("runtime_release", release)["changed"]

    # The same release under a newer lock is the same release; the older lock is refused from then on.
    newer = {**published, "serial": 2}
    trust = {**release["signatures"], "lock_signature": sign_lock(newer, [key])}
    assert not run("runtime_release", {**release, "lock": newer, "signatures": trust})["changed"]
    refused = run("runtime_release", release, fails=True)
    assert refused["what"] == "The lock is older than one that this host has accepted"
    release.update(lock=newer, signatures=trust)
    container = engine.containers.get(NAME)
    assert container.attrs["Config"]["User"] == "1000:1000"
    assert container.attrs["HostConfig"]["CapDrop"] == ["ALL"]
    assert container.attrs["HostConfig"]["ReadonlyRootfs"]
    assert engine.networks.list(names=[NAME]) == [], "the candidate's network is gone"

    model = {"name": "digits", "version": "1.0.0", "golden": str(HERE / "model" / "golden")}
    listen = release["configuration"]["listen"]
    for endpoint in (f"http://{listen['rest'][0]}", f"grpc://{listen['grpc'][0]}"):
        health = run("inference_health", {"endpoint": endpoint, "models": [model]})
        assert [case["label"] for case in health["models"][0]["golden"]] == [str(digit) for digit in range(10)]
        latency = run(
            "inference_latency", {"endpoint": endpoint, "models": [{**model, "p95_ms": 60000}], "samples": 20}
        )
        assert latency["models"][0]["samples"] == 20

    slow = {**release, "models": [{**release["models"][0], "p95_ms": 0.001}]}
    refused = run("runtime_release", {**slow, "environment": {"ANOTHER": "release"}}, fails=True)
    assert "misses its latency objective" in refused["what"]
    assert engine.containers.get(NAME).id == container.id, "the one that serves is not touched"

    absent = {"root": release["root"], "name": "mlserver", "state": "absent"}
    assert run("runtime_release", absent)["changed"]
    assert not run("runtime_release", absent)["changed"]
    assert engine.containers.list(all=True, filters={"name": NAME}) == []
    assert engine.images.list(name=release["image"].partition("@")[0]) == []
