# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook edgeml.fleet.publish with every kind of runtime and source. The tests tell one story, in their order."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import read_signatures
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import TrustedKeys
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import check_lock
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import UNKNOWN
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import manifests_of
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import running_store
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    Authority,
    Store,
    take_built_layers,
)
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key

from .conftest import REGISTRY, Project

pytestmark = pytest.mark.timeout(600)
Source = tuple[Path, list[Any], list[Any]]


@pytest.fixture(scope="module")
def project(source: Source, store: Store, other: Store, tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(source[0], root, dirs_exist_ok=True)
    made = Project(root, store, other)
    made.describe(source[1], source[2])
    return made


def variant(project: Project, model: str, version: str, name: str = "default") -> dict[str, Any]:
    found: dict[str, Any] = project.lock()["models"][model][version]["variants"][name]
    return found


def content(store: Store, entry: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a model in a store."""
    with store.registry().open_blob(entry["repository"], entry["blob"]["digest"]) as stream:
        data = stream.read_all(10_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def test_everything_wrong_is_said_before_anything_is_made(project: Project, source: Source) -> None:
    digits, vibration, *rest = source[1]
    wrong = [
        {**digits, "requires": {"python": ["packaging<1", "scikit-image>=0.24"]}},
        {**vibration, "source": "../models/none"},
        *rest,
    ]
    project.describe(wrong, source[2])
    run = project.publish()
    project.describe(source[1], source[2])
    assert run.code != 0
    words = " ".join(run.output.split())
    for part in ("packaging<1", "the runtime's locked requirements have packaging", "no scikit-image", "models/none"):
        assert part in words
    assert not (project.root / "build").exists()
    assert not project.lock_file.exists()


def test_check_mode_predicts_without_store_and_builds_nothing(project: Project, source: Source) -> None:
    run = project.publish("--check", "--diff", edgeml_store_address=f"127.0.0.1:{free_port()}")
    assert run.code == 0, run.output
    assert not project.lock_file.exists()
    assert "+serial: 1" in run.output
    assert UNKNOWN in run.output, "images are not built yet"
    assert {path.name for path in (project.root / "build").iterdir()} == {"sources"}, "as docs/publish.md says"
    # Models are packed on the controller, so that their digests are known.
    dents = yaml.safe_load((source[0] / "other.lock.yml").read_text())["models"]["dents"]["1.0.0"]["variants"]
    for digest in (source[1][2]["source"]["oci"].rpartition("@")[2], dents["int8"]["index"], dents["fp32"]["digest"]):
        assert f"digest: {digest}" in run.output or f"index: {digest}" in run.output
    assert "What the registry lacks is not known" in run.output


def test_first_publication(project: Project) -> None:
    take_built_layers(project.root / "build/images")
    run = project.publish()
    assert run.code == 0, run.output
    lock = project.lock()
    assert (lock["serial"], lock["registry"]) == (1, REGISTRY)
    assert set(lock["images"]) == {"runtime", "vision", "server", "mirror"}
    assert set(lock["models"]) == {"digits", "vibration", "scratches", "dents"}
    registry = project.store.registry()
    for entry in lock["images"].values():
        assert set(entry["platforms"]) == set(ARCHITECTURES)
        assert registry.has_manifest(entry["repository"], entry["digest"])


def test_what_is_published_is_signed(project: Project) -> None:
    """By a key that the first publication makes: the lock, and each manifest that it names."""
    directory = project.root / "build/inventory"
    assert (directory / "signing.key").stat().st_mode & 0o777 == 0o600
    keys = TrustedKeys([(directory / "signing.key.pub").read_text()])
    text = project.lock_file.with_name("inventory.lock.yml.sig").read_text()
    assert check_lock(project.lock(), text, keys.names(), keys.signer, 1) == keys.names()
    found = list(manifests_of(project.lock()))
    assert len(found) > 20
    for repository, digest in found:
        seen = read_signatures(project.store.registry(), repository, digest, keys.signer)
        assert (seen.simple_signers, seen.bundle_signers) == ({*keys.names()}, {*keys.names()})


def test_what_runs_where_by_package(project: Project) -> None:
    """From the bills of material in the store: the vision image has one distribution more than the runtime's own."""
    run = project.run("packages", edgeml_package="LIBC6", edgeml_package_report=str(project.root / "packages"))
    assert run.code == 0, run.output
    (found,) = json.loads((project.root / "packages/packages.json").read_text())
    assert found["name"] == "libc6"
    assert {"runtime amd64", "runtime arm64", "vision amd64"} <= set(found["images"])
    assert found["hosts"] == []
    assert "server" in run.output, "that image was copied: nobody has written down what is in it"
    runtime, vision = (
        {part["purl"].partition("@")[0] for part in json.loads(path.read_text())["components"]}
        for path in (project.root / f"packages/{name}-arm64.cdx.json" for name in ("runtime", "vision"))
    )
    assert {purl for purl in vision - runtime if purl.startswith("pkg:pypi/")}
    assert not runtime - vision
    run = project.run("packages", edgeml_package="no-such-package")
    assert "No image of the lock has a package 'no-such-package'" in run.output


def test_a_second_signer_signs_the_same_lock(project: Project) -> None:
    signature_file = project.lock_file.with_name("inventory.lock.yml.sig")
    before = signature_file.read_text()
    first = (project.root / "build/inventory/signing.key.pub").read_text()
    second = make_key("ed25519")
    variables = {"edgeml_signing_key": second.private, "edgeml_trusted_keys": [first, second.public]}
    for arguments in (("--check",), ()):
        run = project.run("sign", *arguments, **variables)
        assert (run.code, run.changed) == (0, 1), run.output
    keys = TrustedKeys([first, second.public])
    text = signature_file.read_text()
    assert len(check_lock(project.lock(), text, keys.names(), keys.signer, 2)) == 2
    assert project.run("sign", **variables).changed == 0
    assert second.private.split()[4] not in run.output
    signature_file.write_text(before)


def test_a_variant_holds_its_own_file_alone(project: Project, source: Source) -> None:
    models = source[0] / "models/digits"
    for name, file in (("int8", "model.int8.onnx"), ("fp32", "model.onnx")):
        entry = variant(project, "digits", "1.1.0", name)
        files = content(project.store, entry)
        assert set(files) == {"model.json", "model.onnx", "labels.txt", "golden/seven.json"}
        assert files["model.onnx"] == (models / file).read_bytes()
        assert entry["golden_cases"] == 1
        assert project.store.registry().manifest_digest(entry["repository"], f"1.1.0-{name}") == entry["digest"]


def test_models_of_others_keep_their_digests(project: Project, source: Source) -> None:
    dents = yaml.safe_load((source[0] / "other.lock.yml").read_text())["models"]["dents"]
    assert project.lock()["models"]["dents"] == dents
    scratches = variant(project, "scratches", "3.0.0")
    assert source[1][2]["source"]["oci"].endswith(scratches["digest"])
    vibration = content(project.store, variant(project, "vibration", "2.0.1"))
    assert vibration["model.onnx"] == (source[0] / "packed/vibration-2.0.1/model.onnx").read_bytes()


def test_a_flavour_is_the_runtime_and_one_layer(project: Project) -> None:
    registry = project.store.registry()
    layers = {}
    for name in ("runtime", "vision"):
        digest = project.lock()["images"][name]["platforms"]["arm64"]["digest"]
        manifest = json.loads(registry.get_manifest(f"edgeml/{name}", digest)[0])
        layers[name] = [layer["digest"] for layer in manifest["layers"]]
    assert [*layers["vision"][:2], layers["vision"][3]] == layers["runtime"]
    with registry.open_blob("edgeml/vision", layers["vision"][2]) as stream:
        data = stream.read_all(50_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        packages = {Path(name).parts[3] for name in tar.getnames() if len(Path(name).parts) > 3}
    assert "packaging" in packages
    assert "hpack" not in packages, "the layer below has it"


def test_a_finished_image_keeps_its_digests(project: Project, source: Source) -> None:
    entry = project.lock()["images"]["server"]
    assert source[2][2]["image"].endswith(entry["digest"])
    registry = project.store.registry()
    for platform in entry["platforms"].values():
        manifest = json.loads(registry.get_manifest("edgeml/server", platform["digest"])[0])
        assert all(registry.has_blob("edgeml/server", part["digest"]) for part in manifest["layers"])


def test_again_changes_nothing(project: Project) -> None:
    before = project.lock_file.read_bytes()
    for arguments in ((), ("--check",)):
        run = project.publish(*arguments)
        assert (run.code, run.changed) == (0, 0), run.output
    assert project.lock_file.read_bytes() == before


def test_check_mode_shows_the_lock_to_come(project: Project, source: Source) -> None:
    """What it shows is what the next publication writes, down to the digests."""
    (project.root / "models/digits/labels.txt").write_text("zero\none\ntwo\n")
    run = project.publish("--check")
    assert run.code != 0
    assert "Version 1.1.0-int8 of model digits is published with other content" in " ".join(run.output.split())
    digits, *rest = source[1]
    project.describe([{**digits, "version": "1.1.1"}, *rest], source[2])
    before = project.lock_file.read_bytes()
    run = project.publish("--check", "--diff")
    assert run.code == 0, run.output
    assert project.lock_file.read_bytes() == before
    assert project.publish().code == 0
    lock = project.lock()
    assert lock["serial"] == 2
    for name in ("int8", "fp32"):
        entry = variant(project, "digits", "1.1.1", name)
        for digest in (entry["digest"], entry["index"], entry["blob"]["digest"]):
            assert digest in run.output
    assert variant(project, "vibration", "2.0.1")["digest"] not in run.output, "it stays as it is"


def test_a_lock_that_cannot_be_read_is_refused(project: Project) -> None:
    good = project.lock_file.read_text()
    project.lock_file.write_text(good[: len(good) // 2])
    run = project.publish()
    assert run.code != 0
    assert "restore it from version control" in " ".join(run.output.split()) or "is missing" in run.output
    assert project.lock_file.read_text() == good[: len(good) // 2]
    project.lock_file.write_text(good)


@pytest.fixture
def second_store(programs: Path, authority: Authority, tmp_path: Path) -> Iterator[Store]:
    with running_store(programs, authority, tmp_path) as found:
        yield found


def test_the_same_digests_from_another_place(project: Project, second_store: Store, tmp_path: Path) -> None:
    """An empty store, an empty build directory, another path: the lock is the same."""
    root = tmp_path / "another place"
    shutil.copytree(project.root, root, ignore=shutil.ignore_patterns("build", "*.lock.yml"))
    shutil.copy(project.root / "other.lock.yml", root)
    second = Project(root, second_store, project.other)
    run = second.publish()
    assert run.code == 0, run.output
    first, again = project.lock(), second.lock()
    assert first.pop("serial") == 2
    assert again.pop("serial") == 1
    assert again == first
