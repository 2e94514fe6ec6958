# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From catalogue and runtimes to the work of a publication, and to the lock."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication import next_lock, publication

REGISTRY = "registry.edgeml.internal:5443"
RUNTIME = {"name": "runtime", "recipe": "images/runtime.yml"}
DIGITS = {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "models/digits"}


def plan(base: Path, *catalogue: dict[str, Any], runtimes: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return publication(catalogue, runtimes, str(base), str(base / "build"))


def test_paths_begin_at_the_inventory(tmp_path: Path) -> None:
    found = plan(tmp_path, DIGITS, runtimes=(RUNTIME, {**RUNTIME, "source_root": ".."}))
    assert found["artifacts"][0]["directory"] == str(tmp_path / "models/digits")
    assert found["models"][0]["build"] == {}
    assert [image["source_root"] for image in found["images"]] == [str(tmp_path / "images"), str(tmp_path / "..")]
    assert found["images"][0]["recipe"] == str(tmp_path / "images/runtime.yml")


def test_a_built_model_is_named_after_all_that_it_is_made_of(tmp_path: Path) -> None:
    source = tmp_path / "models/digits"
    (source / "data").mkdir(parents=True)
    for path in (source / "build.py", source / "data/samples", source.parent / "golden_cases.py"):
        path.write_text("first")
    (tmp_path / "models.txt").write_text("numpy==2.4.6 --hash=sha256:0\n")
    model = DIGITS | {"build": {"program": "build.py", "requirements": "models.txt"}}

    def names() -> tuple[str, str]:
        (made,) = plan(tmp_path, model)["models"]
        assert made["directory"] == plan(tmp_path, model)["artifacts"][0]["directory"]
        return made["directory"], made["build"]["environment"]

    directory, environment = names()
    for path in (source / "build.py", source / "data/samples", source.parent / "golden_cases.py"):
        path.write_text("second")
        changed, same = names()
        assert (changed != directory, same) == (True, environment)
        path.write_text("first")
        assert names() == (directory, environment)
    (source / "build_small.py").write_text("third")
    other = model | {"version": "1.1.0", "build": {"program": "build_small.py", "requirements": "models.txt"}}
    assert len({made["directory"] for made in plan(tmp_path, model, other)["models"]}) == 2
    (tmp_path / "models.txt").write_text("numpy==2.4.7 --hash=sha256:0\n")
    assert {directory, environment}.isdisjoint(names())


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
        "repository", "digest", "index", "platforms", "blob", "golden_cases",
    }  # fmt: skip


def test_the_serial_grows_with_every_change_and_with_nothing_else() -> None:
    first = next_lock(None, REGISTRY, IMAGES, [pushed()])
    assert next_lock(copy.deepcopy(first), REGISTRY, IMAGES, [pushed()]) == first
    assert next_lock(first, REGISTRY, IMAGES, [pushed("b")])["serial"] == 2
    assert next_lock(first, "elsewhere:5443", IMAGES, [pushed()])["serial"] == 2
    assert next_lock(first, REGISTRY, IMAGES, [])["serial"] == 2
