# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module service_container with a real engine: what serves stays until its successor answers."""

from __future__ import annotations

import gzip
import json
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    LAYER_TAR_GZIP,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.support.busybox import import_busybox
from ansible_collections.edgeml.fleet.tests.support.content import run_module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "edgeml-test-service"
IMAGE = "edgeml-test-service:local"
# A server of the configuration itself, so that what it serves tells which one it started with.
START = "exec httpd -f -p 8080 -h /etc/www"


def docker(*arguments: str, check: bool = True) -> str:
    run = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert not check or run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import_busybox(IMAGE, ["sh", "grep", "sleep", "httpd"], ["/bin/sh", "-c", START], tmp_path_factory.mktemp("image"))
    yield IMAGE
    docker("image", "rm", "--force", IMAGE, check=False)


@pytest.fixture
def options(image: str, tmp_path: Path) -> Iterator[dict[str, Any]]:
    port = free_port()
    content = tmp_path / "www"
    content.mkdir()
    (content / "index.html").write_text("one")
    for path in (tmp_path, content):
        path.chmod(0o755)
    yield {
        "name": NAME,
        "image": image,
        "publish": [f"127.0.0.1:{port}:8080"],
        "volumes": [f"{content}:/etc/www:ro"],
        "configuration": [str(content)],
        "test": ["/bin/sh", "-c", "if grep -q wrong /etc/www/index.html; then echo it is wrong; exit 1; fi"],
        "endpoint": f"http://127.0.0.1:{port}",
    }
    docker("rm", "--force", NAME, f"{NAME}-before", f"{NAME}-trial", check=False)


def served(options: dict[str, Any]) -> str:
    with urllib.request.urlopen(options["endpoint"], timeout=60) as answer:
        return str(answer.read().decode())


def identifier() -> str:
    return docker("container", "inspect", "--format", "{{.Id}}", NAME)


def test_it_is_made_once_and_replaced_when_its_configuration_changes(options: dict[str, Any]) -> None:
    assert run_module("service_container", options, check=True)["plan"]["action"] == "create"
    assert docker("ps", "--all", "--quiet", "--filter", f"name={NAME}") == ""
    assert run_module("service_container", options)["changed"]
    first = identifier()
    assert served(options) == "one"
    assert run_module("service_container", options)["plan"]["action"] == "none"
    docker("stop", "--time", "1", NAME)
    assert run_module("service_container", options)["plan"]["action"] == "start"
    assert identifier() == first
    Path(options["configuration"][0], "index.html").write_text("two")
    assert run_module("service_container", options, check=True)["plan"]["action"] == "replace"
    assert run_module("service_container", options)["plan"]["action"] == "replace"
    assert (served(options), identifier() != first) == ("two", True)
    assert docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"name={NAME}") == NAME


def test_what_fails_its_test_or_does_not_answer_replaces_nothing(options: dict[str, Any]) -> None:
    run_module("service_container", options)
    first = identifier()
    page = Path(options["configuration"][0], "index.html")
    page.write_text("wrong")
    failure = run_module("service_container", options, fails=True)
    assert failure["seen"] == "it is wrong"
    assert identifier() == first
    page.write_text("right")
    # Nothing answers at the path that is asked for: the container before serves again.
    failure = run_module("service_container", {**options, "path": "/none", "timeout": 1}, fails=True)
    assert "does not answer within 1 s" in failure["what"]
    assert identifier() == first
    assert served(options) == "right"


def test_it_has_few_rights_and_starts_again_by_itself(options: dict[str, Any]) -> None:
    run_module("service_container", options)
    shown = docker(
        "container", "inspect", "--format",
        "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} "
        "{{.HostConfig.RestartPolicy.Name}} {{.Config.User}} {{.HostConfig.PidsLimit}} {{.HostConfig.Memory}}", NAME,
    )  # fmt: skip
    assert shown == "true [ALL] [no-new-privileges] always 65532:65532 256 1073741824"


@pytest.fixture
def mirrored(image: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The same image as a mirror's content, and its name at a store that nobody reaches."""
    root = tmp_path / "mirror"
    blobs = root / "cas/sha256"
    blobs.mkdir(parents=True)

    def blob(media_type: str, data: bytes) -> dict[str, Any]:
        (blobs / sha256_digest(data).removeprefix("sha256:")).write_bytes(data)
        return descriptor(media_type, data)

    saved = tmp_path / "saved.tar"
    docker("image", "save", "--output", str(saved), image)
    with tarfile.open(saved) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        described = json.loads(member("manifest.json"))[0]
        config = blob(IMAGE_CONFIG, member(described["Config"]))
        layers = [blob(LAYER_TAR_GZIP, gzip.compress(member(name))) for name in described["Layers"]]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": layers}
    ).encode()
    digest = sha256_digest(manifest)
    manifests = root / "current/v2/edgeml/mirror/manifests"
    manifests.mkdir(parents=True)
    (manifests / f"{digest}.oci-manifest").write_bytes(manifest)
    yield f"127.0.0.1:{free_port()}/edgeml/mirror@{digest}", root
    for line in docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=*/edgeml/mirror"
    ).split():
        docker("image", "rm", "--force", line, check=False)


def test_an_image_comes_out_of_a_mirror_where_no_store_answers(
    options: dict[str, Any], mirrored: tuple[str, Path]
) -> None:
    name, root = mirrored
    offline = {**options, "image": name, "content": str(root), "pull": True}
    assert run_module("service_container", offline, check=True)["plan"]["action"] == "create"
    assert run_module("service_container", offline)["changed"]
    assert served(options) == "one"
    assert run_module("service_container", offline)["plan"]["action"] == "none"
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    # The stick is away, and the store still does not answer: the engine has the image.
    Path(options["configuration"][0], "index.html").write_text("two")
    assert run_module("service_container", {**options, "image": name, "pull": True})["plan"]["action"] == "replace"
    assert served(options) == "two"


def test_an_altered_image_is_not_loaded(options: dict[str, Any], mirrored: tuple[str, Path]) -> None:
    name, root = mirrored
    for path in (root / "cas/sha256").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    failure = run_module("service_container", {**options, "image": name, "content": str(root)}, fails=True)
    assert "does not hold the image of its own server whole" in failure["what"]
    assert docker("ps", "--all", "--quiet", "--filter", f"name={NAME}") == ""
