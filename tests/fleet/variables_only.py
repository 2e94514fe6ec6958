# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""inventories/example once more, without the plugin: what it says about models, written as variables by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).resolve().parents[2] / "inventories" / "example"

MODELS: dict[str, list[dict[str, Any]]] = {
    "group_vars/cameras": [{"name": "digits", "version": "1.0.0"}],
    "group_vars/gateways": [{"name": "file_type"}],
    # A list of a deeper group or of a host takes the place of the list above it.
    "group_vars/photo_stations": [{"name": "digits", "version": "1.0.0"}, {"name": "photo"}],
    "host_vars/lyon-gateway-1": [
        {"name": "file_type", "protocols": ["rest", "grpc", "mqtt"]},
        {"name": "voice"},
    ],
    "host_vars/osaka-camera-1": [{"name": "digits", "version": "1.0.0"}, {"name": "text_direction"}],
    "host_vars/lyon-camera-2": [
        {"name": "digits", "version": "1.0.0"},
        {
            "name": "photo",
            "requires": {"devices": ["/dev/video0"], "kernel_modules": ["uvcvideo"], "packages": ["v4l-utils"]},
        },
    ],
}


def write_example_without_plugin(target: Path) -> Path:
    """Write the inventory to `target` and return it."""
    shutil.copytree(EXAMPLE, target)
    source = target / "20-placement.yml"
    placement = yaml.safe_load(source.read_text())
    source.unlink()
    shared = {f"edgeml_{key}": placement[key] for key in ("runtimes", "catalogue")}
    (target / "group_vars" / "all" / "models.yml").write_text(yaml.safe_dump(shared))
    for name, models in MODELS.items():
        path = target / f"{name}.yml"
        assert not path.exists(), f"{path} says something already"
        path.write_text(yaml.safe_dump({"edgeml_models": models}))
    return target
