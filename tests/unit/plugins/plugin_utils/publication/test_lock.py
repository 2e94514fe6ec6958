# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock that a publication writes, and reading it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import check_catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication import lock as lock_room
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import (
    UNKNOWN,
    locked_catalogue,
    next_lock,
    published_lock,
    read_lock,
)

REGISTRY = "registry.edgeml.internal:5443"


def pushed(digit: str = "a", *, version: str = "1.0.0", variant: str = "default") -> dict[str, Any]:
    """Return the result of model_artifact in a loop."""
    digest = "sha256:" + digit * 64
    return {
        "item": {"name": "digits", "version": version, "variant": variant, "platform": "onnxruntime_onnx"},
        "changed": True,
        "diff": {},
        "repository": "edgeml/models/digits",
        "digest": digest,
        "index": digest,
        "platforms": {},
        "blob": {"digest": digest, "size": 1},
        "golden_cases": 10,
        "sbom": "sha256:" + "e" * 64,
    }


IMAGES = [{"item": {"name": "runtime"}, "image": {"repository": "edgeml/runtime", "digest": "x", "platforms": {}}}]


def test_the_lock_holds_every_variant_of_every_version() -> None:
    results = [pushed("a"), pushed("b", version="2.0.0", variant="int8"), pushed("c", version="2.0.0", variant="fp32")]
    lock = next_lock(None, REGISTRY, IMAGES, results)
    assert lock["serial"] == 1
    assert lock["images"] == {"runtime": IMAGES[0]["image"]}
    versions = lock["models"]["digits"]
    assert {version: list(entry["variants"]) for version, entry in versions.items()} == {
        "1.0.0": ["default"],
        "2.0.0": ["int8", "fp32"],
    }
    assert versions["2.0.0"]["platform"] == "onnxruntime_onnx"
    assert versions["2.0.0"]["variants"]["int8"]["blob"] == {"digest": "sha256:" + "b" * 64, "size": 1}
    assert set(versions["1.0.0"]["variants"]["default"]) == {
        "repository", "digest", "index", "platforms", "blob", "golden_cases", "sbom",
    }  # fmt: skip


def test_the_lock_has_the_accuracy_of_what_publish_judged(tmp_path: Path) -> None:
    report = tmp_path / "digits-int8-0123.report"
    rows = [{"model": "model.onnx", "accuracy": 233 / 240}, {"model": "int8", "accuracy": 230 / 240}]
    report.write_text(f"| variant |\n{json.dumps(rows)}\n")
    results = [pushed("b", variant="int8"), pushed("c", variant="fp32"), pushed("d", variant="other"), pushed("e")]
    for result, planned in zip(
        results, ({"report": str(report), "row": 1}, {"report": str(report), "row": 0}, {"value": 0.5}, {}), strict=True
    ):
        result["item"]["accuracy"] = planned
    lock = next_lock(None, REGISTRY, [], results)
    variants = lock["models"]["digits"]["1.0.0"]["variants"]
    assert {name: entry.get("accuracy") for name, entry in variants.items()} == {
        "int8": 0.9583, "fp32": 0.9708, "other": 0.5, "default": None,
    }  # fmt: skip
    assert "accuracy" not in variants["default"] and validate(lock, "lock") == []

    unbuilt = {"item": results[0]["item"], "skipped": True, "changed": False}
    report.unlink()
    next_lock(None, REGISTRY, [], [unbuilt])
    with pytest.raises(InventoryError) as caught:
        next_lock(None, REGISTRY, [], results)
    assert str(report) in str(caught.value) and "publish again" in str(caught.value)


def test_the_serial_grows_with_every_change_and_with_nothing_else() -> None:
    first = next_lock(None, REGISTRY, IMAGES, [pushed()])
    assert next_lock(copy.deepcopy(first), REGISTRY, IMAGES, [pushed()]) == first
    assert next_lock(first, REGISTRY, IMAGES, [pushed("b")])["serial"] == 2
    assert next_lock(first, "elsewhere:5443", IMAGES, [pushed()])["serial"] == 2
    assert next_lock(first, REGISTRY, IMAGES, [])["serial"] == 2


def test_what_is_not_built_yet_is_not_known() -> None:
    """In check mode a module returns no content for it."""
    unbuilt = [{"item": {"name": "runtime"}, "changed": True}]
    skipped = {"item": pushed()["item"], "skipped": True, "changed": False}
    lock = next_lock(None, REGISTRY, unbuilt, [skipped])
    assert lock["images"]["runtime"] == {"digest": UNKNOWN}
    assert lock["models"]["digits"]["1.0.0"]["variants"]["default"] == {"digest": UNKNOWN}


def test_reading_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "fleet.lock.yml"
    assert read_lock(str(path)) is None
    lock = {"serial": 3, "registry": REGISTRY, "images": {}, "models": {}}
    path.write_text(yaml.safe_dump(lock))
    assert read_lock(str(path)) == published_lock(str(path)) == lock


def test_a_lock_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counting(text: str) -> Any:
        parsed.append(text)
        return yaml.safe_load(text)

    monkeypatch.setattr(lock_room, "yaml_load", counting)
    path = tmp_path / "fleet.lock.yml"
    rest = "registry: x\nimages: {}\nmodels: {}\n"
    path.write_text("serial: 1\n" + rest)
    for name in (path, tmp_path / "." / "fleet.lock.yml", tmp_path / ".." / tmp_path.name / "fleet.lock.yml"):
        assert published_lock(str(name))["serial"] == 1
    assert parsed == ["serial: 1\n" + rest]
    renewed = tmp_path / "renewed"  # publish replaces the file, here by one of the same size
    renewed.write_text("serial: 2\n" + rest)
    renewed.replace(path)
    assert published_lock(str(path))["serial"] == 2


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "None (nothing)"),
        (b"- a\n", "['a'] (list)"),
        (b"text\n", "'text'"),
        (b"serial: [", "while parsing"),
        (b"serial: 2024-13-45\n", "month must be in 1..12"),
        (b"\xff\xfe\xff", "codec"),
        (b"serial: 1\nregistry: x\n", "no images, models"),
    ],
)
def test_what_is_no_lock_is_refused_by_its_name(tmp_path: Path, content: bytes, seen: str) -> None:
    path = tmp_path / "fleet.lock.yml"
    path.write_bytes(content)
    with pytest.raises(InventoryError) as caught:
        published_lock(str(path))
    text = str(caught.value)
    assert f"The lock cannot be read at {path}" in text
    assert seen in text
    assert "restore it from version control" in text


def test_without_a_lock_the_next_step_is_said(tmp_path: Path) -> None:
    path = tmp_path / "fleet.lock.yml"
    with pytest.raises(InventoryError) as caught:
        published_lock(str(path))
    assert f"Nothing has been published at {path}" in str(caught.value)
    assert "run the playbook edgeml.fleet.publish" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serial: [", "restore it from version control"),
        ("", "Wrong type"),
        ("serial: 0\nregistry: x\nimages: {}\nmodels: {}\n", "serial"),
        ("serial: 1\nregistry: x\nimages: {}\n", "models is missing"),
    ],
)
def test_what_is_no_lock(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "fleet.lock.yml"
    path.write_text(text)
    with pytest.raises(InventoryError) as caught:
        read_lock(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_catalogue_of_what_a_lock_holds() -> None:
    one = {"platform": "onnxruntime_onnx", "variants": {"default": {}}}
    two = {"platform": "python", "variants": {"int8": {}, "fp32": {}}}
    catalogue = locked_catalogue({"models": {"digits": {"1.0.0": one}, "voice": {"2.0.0": two}}}, "fleet.lock.yml")
    assert validate({"edgeml_catalogue": catalogue}, "variables") == []
    assert check_catalogue(catalogue, None) == []
    assert [(item["name"], item["version"], len(item.get("variants", ()))) for item in catalogue] == [
        ("digits", "1.0.0", 0), ("voice", "2.0.0", 2),
    ]  # fmt: skip
