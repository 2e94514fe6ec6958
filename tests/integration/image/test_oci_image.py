# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""oci_image with real Debian packages and wheels, a real registry and a real engine."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.image.conftest import Options, PythonImage, run_module
from ansible_collections.edgeml.fleet.tests.support.content import (
    REPOSITORY_ROOT,
    Store,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Built = tuple[Options, dict[str, Any]]


def delivery(store: Store, repository: str) -> Options:
    return {"registry": store.options(), "repository": repository, "tag": "1.0.0"}


def test_the_same_digests_from_another_cache(mirror_image: Built, tmp_path: Path) -> None:
    options, first = mirror_image
    assert first["changed"]
    archive = {**options["archive"], "path": str(tmp_path / "image.tar")}
    second = run_module({**options, "cache": str(tmp_path / "an other cache"), "archive": archive})
    assert second["image"] == first["image"]
    assert Path(archive["path"]).read_bytes() == Path(options["archive"]["path"]).read_bytes()


def test_nothing_changes_the_second_time(mirror_image: Built) -> None:
    options, first = mirror_image
    assert run_module(options) == {**first, "changed": False}
    assert run_module(options, check=True) == {**first, "changed": False}


def test_the_image_runs_without_rights_and_has_no_shell(
    mirror_image: Built, container: Callable[..., str], tmp_path: Path
) -> None:
    options, result = mirror_image
    archive = Path(options["archive"]["path"])
    version = container(archive, options["archive"]["name"], "-V", entrypoint="/usr/sbin/nginx")
    assert "nginx version" in version
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        with tarfile.open(fileobj=outer.extractfile(manifest["Layers"][0])) as layer:
            names = layer.getnames()
    programs = {name for name in names if name.startswith(("usr/bin/", "usr/sbin/"))}
    assert programs == {"usr/sbin/nginx"}
    assert not {"etc/hostname", "etc/resolv.conf", "etc/apt"} & set(names), "left behind by the building machine"
    assert result["packages"]["arm64"]["nginx"] == result["packages"]["amd64"]["nginx"]


def test_check_push_and_push_again(mirror_image: Built, store: Store) -> None:
    options = {**mirror_image[0], **delivery(store, "edgeml/mirror"), "archive": None}
    assert run_module(options, check=True)["changed"]
    assert not store.registry().has_manifest("edgeml/mirror", "1.0.0"), "check mode pushes nothing"

    pushed = run_module(options)
    assert pushed["changed"]
    registry = store.registry()
    assert registry.manifest_digest("edgeml/mirror", "1.0.0") == pushed["image"]["digest"]
    for platform in pushed["image"]["platforms"].values():
        manifest = json.loads(registry.get_manifest("edgeml/mirror", platform["digest"])[0])
        contents = [manifest["config"], *manifest["layers"]]
        size = sum(item["size"] for item in contents)
        assert platform["size"] == size + len(registry.get_manifest("edgeml/mirror", platform["digest"])[0])
        assert all(registry.has_blob("edgeml/mirror", item["digest"]) for item in contents)

    assert not run_module(options, check=True)["changed"]
    assert not run_module(options)["changed"]
    store.file_of(pushed["layers"]["arm64"][0]["digest"]).unlink()
    assert run_module(options, check=True)["changed"], "a lost layer is noticed"


def test_an_image_builds_upon_one_in_a_registry(mirror_image: Built, store: Store, tmp_path: Path) -> None:
    pushed = run_module({**mirror_image[0], **delivery(store, "edgeml/base"), "archive": None})
    (tmp_path / "page.html").write_text("hello")
    user = store.options()
    options = {
        "recipe": {
            "files": [{"source": "page.html", "target": "/srv/page.html"}],
            "config": {"user": "65532", "entrypoint": ["/usr/sbin/nginx"], "environment": {"LANG": "C.UTF-8"}},
        },
        "source_root": str(tmp_path),
        "base_image": f"{store.address}/edgeml/base@{pushed['image']['digest']}",
        "base_username": user["username"],
        "base_password": user["password"],
        "base_ca_file": user["ca_file"],
        **delivery(store, "edgeml/derived"),
    }
    results = [run_module({**options, "cache": str(tmp_path / name)}) for name in ("first", "second")]
    assert [result["changed"] for result in results] == [True, False]
    assert results[0]["image"] == results[1]["image"]
    for architecture in ("amd64", "arm64"):
        layers = results[0]["layers"][architecture]
        assert [layer["purpose"] for layer in layers] == ["base", "files"]
        assert layers[0]["digest"] == pushed["layers"][architecture][0]["digest"]
        assert store.registry().has_blob("edgeml/derived", layers[0]["digest"])

    manifest = pushed["image"]["platforms"]["amd64"]["digest"]
    for reference, message in {
        f"{store.address}/edgeml/base:1.0.0": "not named by digest",
        f"{store.address}/edgeml/base@{manifest}": "manifest of one platform",
        f"{store.address}/edgeml/base@sha256:{'0' * 64}": "does not hold this",
    }.items():
        failed = run_module({**options, "base_image": reference, "cache": str(tmp_path / "third")})
        assert failed["failed"] and message in failed["msg"]
        assert user["password"] not in json.dumps(failed)


def test_python_is_compiled_for_both_architectures(
    python_image: PythonImage, tmp_path: Path, container: Callable[..., str], store: Store
) -> None:
    """Bytecode is in place, works, and holds nothing of where it was made; the same from two directories and bases."""
    python, source, first = python_image.recipe, python_image.source, python_image.result
    place = tmp_path / "second place"
    options = {"recipe": python, "source_root": str(source), "cache": str(place), "architectures": ["amd64"]}
    archive = {"path": str(tmp_path / "second.tar"), "architecture": "amd64", "name": "edgeml-test/python:second"}
    second = run_module({**options, "archive": archive})
    assert first["layers"]["amd64"] == second["layers"]["amd64"]
    assert first["packages"]["arm64"].keys() == first["packages"]["amd64"].keys()

    printed = container(
        python_image.archive, "edgeml-test/python:built", "-c", "import application", entrypoint="python3.13"
    )
    version, *cached = printed.split()
    assert version == first["packages"]["amd64"]["orjson"]
    assert [path.partition("/__pycache__/")[0] for path in cached] == [
        "/opt/edgeml/app/application",
        *(f"/opt/edgeml/python/{name}" for name in ("hpack", "httptools", "orjson")),
        "/usr/lib/python3.13/asyncio",
    ]
    layers = {layer["digest"].removeprefix("sha256:") for layers in first["layers"].values() for layer in layers}
    made = [python_image.cache / "blobs" / name for name in layers] + list((place / "blobs").iterdir())
    assert len(made) == 5 + 3, "base and wheels of each architecture, and the application"
    for blob in made:
        with tarfile.open(blob) as layer:
            for entry in layer:
                if entry.name.endswith(".pyc"):
                    content = layer.extractfile(entry).read()  # type: ignore[union-attr]
                    assert content[4:8] == b"\x01\x00\x00\x00", f"{entry.name}: not an unchecked hash"
                    for directory in (REPOSITORY_ROOT, tmp_path, python_image.cache.parent):
                        assert str(directory).encode() not in content, entry.name

    options = {"recipe": python, "source_root": str(source), "cache": str(python_image.cache)}
    pushed = run_module({**options, **delivery(store, "edgeml/python")})
    user = store.options()
    derived = run_module(
        {
            **options,
            **delivery(store, "edgeml/on-python"),
            "cache": str(tmp_path / "upstream"),
            "base_image": f"{store.address}/edgeml/python@{pushed['image']['digest']}",
            **{f"base_{key}": user[key] for key in ("username", "password", "ca_file")},
        }
    )
    for architecture, layers in derived["layers"].items():
        below = [layer["digest"] for layer in pushed["layers"][architecture]]
        assert [layer["digest"] for layer in layers] == [*below, *below[1:]], "compiled by the base image's Python"


def test_failures_say_what_to_do(mirror_image: Built, store: Store, tmp_path: Path) -> None:
    good = {**mirror_image[0], **delivery(store, "edgeml/failing"), "archive": None}
    unknown = {
        "base": {"suite": "trixie", "packages": ["no-such-package"]},
        "config": {"entrypoint": ["/x"], "user": "1"},
    }
    cases: list[tuple[Options, str]] = [
        ({"registry": {**store.options(), "password": "wrong"}}, "refused the user name and password"),
        ({"registry": store.options(f"127.0.0.1:{free_port()}")}, "cannot be reached"),
        ({"repository": "Upper/Case"}, "Not a repository name"),
        ({"recipe": unknown, "cache": str(tmp_path / "unknown")}, "no-such-package"),
        ({"recipe": {**good["recipe"], "bases": {}}}, "Unknown key"),
    ]
    for change, message in cases:
        failed = run_module({**good, **change})
        assert failed["failed"] and message in failed["msg"], failed
        assert failed["remedy"]
    assert not store.registry().has_manifest("edgeml/failing", "1.0.0")
