# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""model_artifact against a real registry."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import check_digest, sha256_digest
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    Link,
    Store,
    publish_model,
    run_module,
    write_model,
)


def arguments(store: Store, source: Path, repository: str) -> dict[str, object]:
    return {
        "source": str(source),
        "name": "digits",
        "version": "1.0.0",
        "repository": repository,
        "registry": store.options(),
    }


def test_check_push_and_push_again(store: Store, tmp_path: Path) -> None:
    repository = "edgeml/models/twelve-steps"
    options = arguments(store, write_model(tmp_path / "digits"), repository)
    registry = store.registry()

    predicted = run_module("model_artifact", options, check=True)
    assert predicted["changed"]
    assert not registry.has_manifest(repository, "1.0.0")
    assert predicted["diff"]["before"] == ""

    first = run_module("model_artifact", options)
    assert first["changed"]
    assert {key: first[key] for key in ("digest", "index", "platforms", "blob")} == {
        key: predicted[key] for key in ("digest", "index", "platforms", "blob")
    }
    assert registry.manifest_digest(repository, "1.0.0") == first["digest"]
    assert registry.manifest_digest(repository, "1.0.0-image") == first["index"]

    assert not run_module("model_artifact", options, check=True)["changed"]
    again = run_module("model_artifact", options)
    assert not again["changed"]
    assert again["digest"] == first["digest"]

    # A changed file changes the digest, and a version is not published twice with other content.
    (tmp_path / "digits" / "labels.txt").write_text("zero\none\ntwo\n")
    for check in (True, False):
        refused = run_module("model_artifact", options, check=check, fails=True)
        assert first["digest"] in refused["seen"]
        assert "new version" in refused["remedy"]
    assert registry.manifest_digest(repository, "1.0.0") == first["digest"]
    changed = run_module("model_artifact", {**options, "version": "1.0.1"})
    assert changed["changed"]
    assert f"1.0.1: {changed['digest']}\n" in changed["diff"]["after"]


def test_what_the_registry_then_holds(store: Store, tmp_path: Path) -> None:
    """ModelPack manifest and image index lead to the same blob, whose tar is the model directory."""
    repository = "edgeml/models/content"
    source = write_model(tmp_path / "digits")
    entry = run_module("model_artifact", arguments(store, source, repository))
    registry = store.registry()

    data, media_type = registry.get_manifest(repository, "1.0.0")
    manifest = json.loads(data)
    assert media_type == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.model.weight.v1.tar"
    assert {"digest": layer["digest"], "size": layer["size"]} == entry["blob"]
    with registry.open_blob(repository, manifest["config"]["digest"]) as stream:
        config = json.loads(stream.read_all(10_000))
    assert config["descriptor"] == {"name": "digits", "version": "1.0.0"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"]]}

    index = json.loads(registry.get_manifest(repository, "1.0.0-image")[0])
    assert [child["platform"]["architecture"] for child in index["manifests"]] == ["amd64", "arm64"]
    for child in index["manifests"]:
        platform = entry["platforms"][child["platform"]["architecture"]]
        assert platform["digest"] == child["digest"]
        data, _ = registry.get_manifest(repository, child["digest"])
        image = json.loads(data)
        assert image["layers"] == [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer["digest"], "size": layer["size"]}
        ]
        assert platform["size"] == len(data) + image["config"]["size"] + layer["size"]
        with registry.open_blob(repository, image["config"]["digest"]) as stream:
            image_config = json.loads(stream.read_all(10_000))
        assert image_config["architecture"] == child["platform"]["architecture"]
        assert image_config["rootfs"]["diff_ids"] == [layer["digest"]]

    with registry.open_blob(repository, layer["digest"]) as stream:
        blob = stream.read_all(10_000_000)
    assert sha256_digest(blob) == check_digest(layer["digest"], "test")
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        assert tar.getnames() == ["golden", "golden/seven.json", "labels.txt", "model.json", "model.onnx"]
        description = tar.extractfile("model.json")
        assert description is not None
        assert json.load(description) == {
            "name": "digits",
            "version": "1.0.0",
            "platform": "onnxruntime_onnx",
            "file": "model.onnx",
        }


def test_only_the_missing_part_is_sent_again(store: Store, tmp_path: Path) -> None:
    """After an interrupted publication the next one completes it."""
    repository = "edgeml/models/completed"
    model = Model("digits", "1.0.0", "onnxruntime_onnx", write_model(tmp_path / "digits"), "model.onnx")

    def publish() -> bool:
        return publish_model(model, ARCHITECTURES, store.registry(), repository)[0]

    assert publish()
    tag = store.storage / "docker/registry/v2/repositories" / repository / "_manifests/tags/1.0.0-image/current/link"
    tag.unlink()
    assert publish()
    assert tag.exists()
    assert not publish()


def test_a_wrong_password_is_said_and_not_shown(store: Store, tmp_path: Path) -> None:
    options = arguments(store, write_model(tmp_path / "digits"), "edgeml/models/refused")
    options["registry"] = store.options() | {"password": "battery staple"}
    failed = run_module("model_artifact", options, fails=True)
    assert failed["what"] == "The registry refused the user name and password"
    assert store.address in failed["where"]
    assert "user name publisher" in failed["seen"]
    assert "battery staple" not in json.dumps(failed)


def test_an_unreachable_registry_is_said(store: Store, tmp_path: Path) -> None:
    options = arguments(store, write_model(tmp_path / "digits"), "edgeml/models/unreachable")
    address = f"127.0.0.1:{free_port()}"
    options["registry"] = store.options(address)
    failed = run_module("model_artifact", options, fails=True)
    assert failed["what"] == "The registry cannot be reached"
    assert address in failed["where"]
    assert "refused" in failed["seen"]


def test_a_version_that_yaml_reads_as_a_number_is_refused(store: Store, tmp_path: Path) -> None:
    options = arguments(store, write_model(tmp_path / "digits"), "edgeml/models/version") | {"version": 1.1}
    failed = run_module("model_artifact", options, fails=True)
    assert failed["what"] == "Not a model version"
    assert failed["seen"] == "the number 1.1"
    assert "quoted" in failed["remedy"]


def test_an_upload_survives_a_lost_connection(store: Store, link: Callable[..., Link]) -> None:
    """The client starts an upload anew when the connection breaks in it."""
    blob = os.urandom(1_000_000)
    line = link(per_connection=100_000, limited=1)
    assert store.registry(line.address).push_blob("edgeml/models/upload", blob, sha256_digest(blob))
    assert line.connections == 2
    with store.registry().open_blob("edgeml/models/upload", sha256_digest(blob)) as stream:
        assert stream.read_all(2_000_000) == blob
