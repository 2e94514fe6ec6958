# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images are put together as the OCI image specification asks, and the same inputs give the same digests."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.assembly import Assembly, Image
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache
from ansible_collections.edgeml.fleet.plugins.module_utils._image.delivery import is_archived, write_archive
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import LayerFile, write_layer
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import parse_recipe

RECIPE = {
    "files": [{"source": "app", "target": "/opt/app"}, {"source": "notes.txt", "target": "/etc/notes"}],
    "config": {
        "user": "65532",
        "entrypoint": ["/opt/app/run"],
        "environment": {"B": "ours", "C": "ours"},
        "labels": {"title": "ours"},
    },
}


class SmallBase:
    """A base with one real layer for each architecture."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def identity(self) -> object:
        return "small"

    def layers(self, architecture: str) -> list[LayerFile]:
        tree = self._directory / architecture
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "architecture").write_text(architecture)
        (tree / "architecture").chmod(0o644)
        return [write_layer(tree, self._directory / f"{architecture}.layer")]

    def config(self, architecture: str) -> Mapping[str, Any]:
        return {"config": {"Env": ["A=base", "B=base"], "Labels": {"vendor": "base"}, "Cmd": ["/bin/base"]}}

    def packages(self, architecture: str) -> Mapping[str, str]:
        return {"small": "1"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for name in ["app/run", "app/module.py", "app/tests/test_module.py", "app/__pycache__/module.pyc", "notes.txt"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "app/run").chmod(0o700)
    return root


@pytest.fixture
def assemble(tmp_path: Path, source: Path) -> Callable[[str], Image]:
    def run(name: str) -> Image:
        cache = LayerCache(tmp_path / name)
        with cache.locked(), cache.work_directory() as work:
            base = SmallBase(tmp_path / f"{name}-base")
            return Assembly(parse_recipe(RECIPE), source, cache, base, work).image(["arm64", "amd64"])

    return run


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_every_digest_leads_to_the_next(assemble: Callable[[str], Image]) -> None:
    image = assemble("cache")
    index = json.loads(image.index)
    assert [child["platform"] for child in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
    ]
    for child in index["manifests"]:
        platform = image.platforms[child["platform"]["architecture"]]
        assert (child["digest"], child["size"]) == (digest(platform.manifest), len(platform.manifest))
        manifest = json.loads(platform.manifest)
        assert manifest["config"]["digest"] == digest(platform.config)
        config = json.loads(platform.config)
        assert config["architecture"] == child["platform"]["architecture"]
        files = [layer.file.path.read_bytes() for layer in platform.layers]
        assert [layer["digest"] for layer in manifest["layers"]] == [digest(data) for data in files]
        assert config["rootfs"]["diff_ids"] == [digest(gzip.decompress(data)) for data in files]
        size = len(platform.manifest) + manifest["config"]["size"] + sum(map(len, files))
        entry = image.lock_entry("edgeml/test")
        assert entry["platforms"][config["architecture"]] == {
            "digest": child["digest"],
            "size": size,
            "sbom": digest(image.sbom("edgeml/test", config["architecture"])[0]),
        }
        assert entry["digest"] == digest(image.index)


def test_files_are_one_layer_for_all_architectures(assemble: Callable[[str], Image]) -> None:
    layers = [platform.layers[-1].file for platform in assemble("cache").platforms.values()]
    assert layers[0].digest == layers[1].digest
    with tarfile.open(layers[0].path) as archive:
        modes = {entry.name: oct(entry.mode) for entry in archive}
    assert modes == {
        "etc": "0o755",
        "etc/notes": "0o644",
        "opt": "0o755",
        "opt/app": "0o755",
        "opt/app/module.py": "0o644",
        "opt/app/run": "0o755",
    }


def test_configuration_adds_to_the_base(assemble: Callable[[str], Image]) -> None:
    config = json.loads(assemble("cache").platforms["arm64"].config)
    assert config["created"] == "1970-01-01T00:00:00Z"
    assert config["config"] == {
        "User": "65532",
        "Entrypoint": ["/opt/app/run"],
        "Env": ["A=base", "B=ours", "C=ours"],
        "Labels": {"vendor": "base", "title": "ours"},
        "WorkingDir": "/",
    }


def test_digests_depend_on_content_only(assemble: Callable[[str], Image], source: Path) -> None:
    first = assemble("first").digest
    (source / "app/tests/test_module.py").write_text("other")
    (source / "app/module.py").touch()
    assert assemble("second").digest == first
    (source / "app/module.py").write_text("other")
    assert assemble("second").digest != first


def test_links_in_the_sources_are_refused(assemble: Callable[[str], Image], source: Path) -> None:
    (source / "app/link").symlink_to("/etc/shadow")
    with pytest.raises(FleetError, match="symbolic link"):
        assemble("cache")


def test_a_recipe_without_base_needs_a_base_image(tmp_path: Path, source: Path) -> None:
    with pytest.raises(FleetError, match="nothing to build upon"):
        Assembly(parse_recipe(RECIPE), source, LayerCache(tmp_path), None, tmp_path)


def test_archive_is_written_once_and_in_one_step(assemble: Callable[[str], Image], tmp_path: Path) -> None:
    platform = assemble("cache").platforms["amd64"]
    path = tmp_path / "image.tar"
    path.write_bytes(b"not a tar")
    assert not is_archived(platform, path, "edgeml/test:1")
    assert write_archive(platform, path, "edgeml/test:1")
    assert not write_archive(platform, path, "edgeml/test:1")
    assert write_archive(platform, path, "")
    with tarfile.open(path) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        config = archive.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        layers = [archive.extractfile(name).read() for name in manifest["Layers"]]  # type: ignore[union-attr]
    assert (config, manifest["RepoTags"]) == (platform.config, None)
    assert [digest(gzip.decompress(layer)) for layer in layers] == json.loads(config)["rootfs"]["diff_ids"]
    with pytest.raises(FleetError, match="cannot be written"):
        write_archive(platform, tmp_path / "missing" / "image.tar", "")
    assert not list(tmp_path.glob(".image.tar.*"))
