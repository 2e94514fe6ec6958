# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says that a host runs, in the short form that the report compares with what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import PERCENTILES


def expected_models(
    models: Sequence[Mapping[str, Any]], releases: Sequence[Mapping[str, Any]], tls: bool
) -> list[dict[str, Any]]:
    """Return what a host is meant to run, short: for each runtime its models, and where it tells its metrics.

    `models` is what the filter host_models returns, `releases` what host_releases returns.
    """
    objectives = {model["name"]: model.get("slo") or {} for model in models}
    return [
        {
            "name": release["name"],
            "metrics": list(release["listen"].get("metrics", ())),
            "tls": bool(tls and release["server"] is None),
            "models": [
                {
                    **{key: model[key] for key in ("name", "version", "variant", "digest")},
                    "protocol": objectives.get(model["name"], {}).get("protocol", "grpc"),
                    "objective": {
                        key: float(value)
                        for key in PERCENTILES
                        if (value := objectives.get(model["name"], {}).get(key)) is not None
                    },
                }
                for model in release["models"]
            ],
        }
        for release in releases
    ]
