# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the checks of a host ask its releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import address as join
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import local_address
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import PERCENTILES


def release_checks(releases: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where the host's own checks ask: an item for each release and protocol.

    `releases` is what host_releases returns; `settings` holds ``tls`` (whether the runtime has a certificate) and
    ``directory`` (the host's root of models and state). Each item has ``runtime``, ``endpoint``, ``secured`` (whether
    certificate and token are asked for) and ``models``, and ``measured``, as the modules inference_health and
    inference_latency take them.
    """
    checks = []
    for release in releases:
        root = settings["directory"]
        if release["name"] != DEFAULT_RUNTIME:
            root = f"{root}/runtimes/{release['name']}"
        for protocol, scheme in (("rest", "http"), ("grpc", "grpc")):
            address = next((text for text in release["listen"].get(protocol, ()) if not text.startswith("unix:")), None)
            models = [
                model for model in release["models"] if release["server"] is not None or protocol in model["protocols"]
            ]
            if address is None or not models:
                continue
            local = join(local_address(address), address.rpartition(":")[2])
            secured = settings["tls"] and release["server"] is None
            checked = [_checked(model, root) for model in models]
            checks.append(
                {
                    "runtime": release["name"],
                    "endpoint": f"{scheme}{'s' if secured else ''}://{local}",
                    "secured": secured,
                    "models": checked,
                    "measured": [
                        {**item, **{key: model[key] for key in PERCENTILES if model.get(key) is not None}}
                        for item, model in zip(checked, models, strict=True)
                    ],
                }
            )
    return checks


def _checked(model: Mapping[str, Any], root: str) -> dict[str, Any]:
    item = {"name": model["name"], "version": model["version"]}
    if model["golden_cases"] > 0:
        item["golden"] = f"{root}/models/{model['digest'].partition(':')[2]}/golden"
    return item
