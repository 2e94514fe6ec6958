# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What smaller variants of three real models gain and lose on this machine: `make bench-minify`.

The product does the work: publish makes and judges the variants, edgeml.fleet.measure runs each beside a real engine,
and its table and pictures are the report.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (
    lay_out_mirror,
    running_mirror,
    running_store,
)
from ansible_collections.edgeml.fleet.tests.integration.publish.conftest import Project
from ansible_collections.edgeml.fleet.tests.support.content import (
    PACKAGES,
    REPOSITORY_ROOT,
    Authority,
    SiteMirror,
    take_built_layers,
)
from ansible_collections.edgeml.fleet.tests.support.measuring import measuring_fleet

RESULTS = REPOSITORY_ROOT / "build" / "bench" / "minify"
MODELS = ("file_type", "text_direction", "voice")
RECIPES = ("int8_dynamic", "int8_static", "fp16")
SAMPLES = int(os.environ.get("SAMPLES") or 200)
#: The limits let every variant be measured; which ones a model should allow is what the table is for.
NO_LIMITS = {"max_deviation": 100.0, "accuracy": 1.0}


def entries() -> Iterator[dict[str, Any]]:
    """Yield the three models of inventories/example, each with a variant of every recipe."""
    example = yaml.safe_load((REPOSITORY_ROOT / "inventories/example/20-placement.yml").read_text())
    for model in example["catalogue"]:
        if model["name"] not in MODELS:
            continue
        tuned = {item["minify"]["recipe"]: item["minify"] for item in model.get("variants", ()) if "minify" in item}
        made = [{"name": name, "minify": tuned.get(name, {"recipe": name})} for name in RECIPES]
        yield {
            **{key: model[key] for key in ("name", "version", "platform", "source", "build", "evaluation")
               if key in model},
            "runtime": "measured",
            "variant": "best",
            "variants": [*made, {"name": "fp32", "file": "model.onnx"}],
            "max_loss": NO_LIMITS,
        }  # fmt: skip


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    programs = unpacked("content-programs", PACKAGES)
    root = Path(tempfile.mkdtemp(prefix="bench-minify-"))
    root.chmod(0o755)
    try:
        for name in ("store", "mirror", "project", "fleet"):
            (root / name).mkdir()
        authority = Authority.made(root)
        port = free_port()
        tree = lay_out_mirror(authority, root / "mirror", port)
        mirror = SiteMirror(tree, f"127.0.0.1:{port}", str(authority.ca_file))
        with (
            running_store(programs, authority, root / "store") as store,
            running_mirror(programs, root / "mirror", port),
        ):
            project = Project(root / "project", store, store)
            take_built_layers(project.root / "build/images")
            with measuring_fleet(project, list(entries()), mirror, root / "fleet") as fleet:
                run = fleet.run({"samples": SAMPLES, "seconds": 5})
                if run.code:
                    sys.exit(run.output)
                shutil.copytree(fleet.report, RESULTS, dirs_exist_ok=True)
    finally:
        shutil.rmtree(root)
    report = RESULTS / "measurements.md"
    print(report.read_text())
    print(f"{report.relative_to(REPOSITORY_ROOT)}, with a picture of each model beside it")


if __name__ == "__main__":
    main()
