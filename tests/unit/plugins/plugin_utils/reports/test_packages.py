# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts run a package, by the bills of material of their images."""

from __future__ import annotations

from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.sbom import image_sbom
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.packages import (
    images_by_host,
    packages_report,
    table,
)

DIGEST = sha256_digest(b"image")


def bill(architecture: str, **debian: str) -> bytes:
    return image_sbom("edgeml/runtime", architecture, DIGEST, debian, {"numpy": "2.4.6"}, "trixie")


BILLS = {
    ("runtime", "amd64"): bill("amd64", libssl3="3.5.1"),
    ("runtime", "arm64"): bill("arm64", libssl3="3.5.4"),
    ("vision", "amd64"): bill("amd64"),
}


def model(runtime: str) -> dict[str, Any]:
    return {"name": "digits", "version": "1.0.0", "runtime": runtime, "variant": "default"}


HOSTS: dict[str, dict[str, Any]] = {
    "a": {"edgeml_models": [model("runtime")], "edgeml_architecture": "amd64"},
    "b": {"edgeml_models": [model("runtime"), model("vision")], "edgeml_architecture": "arm64"},
    "c": {"edgeml_models": [model("runtime")]},
    "mirror": {},
}
PLACED = images_by_host(HOSTS, HOSTS)


def test_each_version_has_its_hosts() -> None:
    """A host whose architecture the inventory does not say may be either."""
    found = packages_report(BILLS, PLACED, "libSSL*")
    assert [(entry["version"], entry["images"], entry["hosts"]) for entry in found] == [
        ("3.5.1", ["runtime amd64"], ["a", "c"]),
        ("3.5.4", ["runtime arm64"], ["b", "c"]),
    ]
    assert "3.5.4    runtime arm64  2: b, c" in table(found, "libSSL*")


def test_equal_versions_are_one_line() -> None:
    (numpy,) = packages_report(BILLS, PLACED, "numpy")
    assert numpy["images"] == ["runtime amd64", "runtime arm64", "vision amd64"]
    assert numpy["hosts"] == ["a", "b", "c"]


def test_what_no_image_has_is_said() -> None:
    assert (
        table(packages_report(BILLS, PLACED, "left-pad"), "left-pad") == "No image of the lock has a package 'left-pad'"
    )
