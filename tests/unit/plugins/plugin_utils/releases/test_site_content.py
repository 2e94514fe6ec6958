# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a site's mirror has to hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import part_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import digests_in_use, site_content


def variant(sign: str) -> dict[str, Any]:
    return {"digest": "sha256:" + sign * 64, "blob": {"digest": "sha256:" + sign.upper() * 64, "size": 1}}


IMAGE = {"repository": "edgeml/x", "platforms": {"amd64": {"digest": "sha256:" + "0" * 64, "size": 1}}}
LOCK: dict[str, Any] = {
    "serial": 3,
    "images": {"runtime": IMAGE, "vision": IMAGE, "mirror": IMAGE},
    "models": {
        "digits": {
            "1.0.0": {"variants": {"default": variant("a")}},
            "1.1.0": {"variants": {"int8": variant("b"), "fp32": variant("c")}},
        },
        "faces": {"2.0.0": {"variants": {"default": variant("d")}}},
    },
}
CATALOGUE = [
    {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "x"},
    {
        "name": "digits",
        "version": "1.1.0",
        "platform": "onnxruntime_onnx",
        "source": "x",
        "variants": [
            {"name": "int8", "file": "int8.onnx", "when": {"architecture": ["arm64"]}},
            {"name": "fp32", "file": "model.onnx"},
        ],
    },
    {"name": "faces", "version": "2.0.0", "platform": "onnxruntime_onnx", "source": "x", "runtime": "vision"},
]
RUNTIMES = [{"name": "runtime", "recipe": "r"}, {"name": "vision", "extends": "runtime", "requirements": "v"}]
SHARED = {"edgeml_catalogue": CATALOGUE, "edgeml_runtimes": RUNTIMES, "edgeml_models": [], "group_names": []}


def fleet(**hosts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"mirror": {"edgeml_site": "berlin"}, **hosts}
    return {name: {**SHARED, "inventory_hostname": name, **variables} for name, variables in found.items()}


def content(pinned: tuple[dict[str, Any], ...] = (), **hosts: dict[str, Any]) -> dict[str, Any] | None:
    hostvars = fleet(**hosts)
    return site_content(LOCK, hostvars, hostvars, hostvars["mirror"], pinned)


def at_berlin(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"edgeml_site": "berlin", "edgeml_models": list(models), **more}


def test_what_the_hosts_of_the_site_run_and_no_more() -> None:
    assert content(
        one=at_berlin({"name": "digits", "version": "1.0.0"}),
        two={"edgeml_site": "paris", "edgeml_models": [{"name": "faces"}]},
    ) == {"images": ["mirror", "runtime"], "models": {"digits": {"1.0.0": ["default"]}}}


def test_an_override_of_a_canary_counts() -> None:
    found = content(
        one=at_berlin({"name": "digits", "version": "1.0.0"}),
        canary=at_berlin(
            {"name": "digits", "version": "1.0.0"},
            edgeml_model_overrides={"digits": {"version": "1.1.0"}},
            edgeml_architecture="arm64",
        ),
    )
    assert found is not None
    assert found["models"] == {"digits": {"1.0.0": ["default"], "1.1.0": ["int8"]}}


def test_an_undecided_variant_means_all_and_facts_change_nothing() -> None:
    """Else a mirror would differ from its record as soon as preflight has learned something."""
    model = {"name": "digits", "version": "1.1.0"}
    found = content(
        one=at_berlin(model, ansible_facts={"architecture": "aarch64"}, edgeml_host={"architecture": "arm64"})
    )
    assert found is not None
    assert found["models"] == {"digits": {"1.1.0": ["fp32", "int8"]}}


def test_runtimes_come_with_their_models() -> None:
    found = content(one=at_berlin({"name": "faces"}))
    assert found == {"images": ["mirror", "vision"], "models": {"faces": {"2.0.0": ["default"]}}}


def test_resolved_models_are_taken_as_they_are() -> None:
    item = {"name": "faces", "version": "2.0.0", "variant": "default", "runtime": "vision"}
    assert content(one=at_berlin(item, edgeml_catalogue=None)) == {
        "images": ["mirror", "vision"],
        "models": {"faces": {"2.0.0": ["default"]}},
    }


def test_a_job_slice_does_not_narrow_a_mirror() -> None:
    """The hosts of other slices are not in the inventory; what the plugin placed at the whole site is."""
    models = [
        {"name": "digits", "version": "1.1.0", "variant": "int8", "runtime": "runtime"},
        {"name": "faces", "version": "2.0.0", "variant": "default", "runtime": "vision"},
    ]
    whole = content(one=at_berlin(models[0]), two=at_berlin({"name": "faces"}))
    mirror = {"edgeml_site": "berlin", "edgeml_site_models": models}
    assert content(mirror=mirror, one=at_berlin(models[0])) == whole
    assert content(mirror=mirror) == whole


def test_a_site_without_models_has_all_of_the_lock() -> None:
    """Nothing is known of its hosts, such as in a job slice that holds none of them."""
    assert content(one={"edgeml_site": "paris", "edgeml_models": [{"name": "digits"}]}) is None


def test_what_is_pinned_comes_too() -> None:
    found = content(
        ({"name": "digits"}, {"name": "faces", "version": "2.0.0"}, {"runtime": "vision"}),
        one=at_berlin({"name": "digits", "version": "1.0.0"}),
    )
    assert found == {
        "images": ["mirror", "runtime", "vision"],
        "models": {"digits": {"1.0.0": ["default"], "1.1.0": ["fp32", "int8"]}, "faces": {"2.0.0": ["default"]}},
    }
    assert set(part_of(LOCK, found)["models"]["digits"]["1.1.0"]["variants"]) == {"int8", "fp32"}


@pytest.mark.parametrize("item", [{"name": "digits", "version": "9.0.0"}, {"runtime": "none"}, {"name": "none"}, {}])
def test_a_pin_that_the_lock_does_not_have_is_refused(item: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match=r"what is pinned at site_mirror_pinned.*Seen: \{"):
        content((item,), one=at_berlin({"name": "digits", "version": "1.0.0"}))


def test_what_hosts_reported_last_is_in_use(tmp_path: Path) -> None:
    def line(day: int, host: str, digest: str, **more: Any) -> str:
        time = f"2026-01-{day:02}T00:00:00Z"
        models = [{"name": "digits", "digest": digest}]
        entry = {
            "time": time,
            "host": host,
            "site": "berlin",
            "runtime": "runtime",
            "outcome": "active",
            "models": models,
        }
        return json.dumps({**entry, "release": digest, **more})

    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(
        "\n".join(
            [
                *(line(day, "one", f"sha256:{day}", image=f"store/runtime@sha256:image{day}") for day in (1, 2, 3)),
                line(4, "one", "sha256:refused", outcome="refused"),
                line(1, "two", "sha256:away"),
                line(1, "three", "sha256:elsewhere", site="paris"),
                line(1, "four", "sha256:removed"),
                line(2, "four", "sha256:removed", outcome="removed"),
                line(1, "five", "sha256:moved away"),
                line(2, "five", "sha256:moved away", site="paris"),
            ]
        )
    )
    assert digests_in_use(str(ledger), "berlin") == [
        "sha256:2", "sha256:3", "sha256:away", "sha256:image2", "sha256:image3",
    ]  # fmt: skip
    assert digests_in_use(str(tmp_path / "none"), "berlin") == []
    # Nobody knows then what may go.
    with pytest.raises(FleetError, match="ledger"):
        digests_in_use(str(tmp_path), "berlin")
