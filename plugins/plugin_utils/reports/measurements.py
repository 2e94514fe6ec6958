# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of a host found, in the short form that the host keeps until the next converge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import PERCENTILES


def measurements(
    health: Sequence[Mapping[str, Any]], latency: Sequence[Mapping[str, Any]], previous: Mapping[str, Any]
) -> dict[str, Any]:
    """Return {"models", "latency", "case"} from the answers of inference_health and inference_latency.

    Parameters
    ----------
    health, latency : sequence of mapping
        One answer for each endpoint, with the loop's ``item``. Latency may lack endpoints of which nothing changed.
    previous : mapping
        What this function returned at the last converge, or {}: a latency that was not measured again stays.

    Returns
    -------
    dict
        ``models``: name, version, ``passed`` of ``cases`` golden cases, and the ``labels`` that were recognised;
        ``latency``: model, protocol, p50_ms, p95_ms, p99_ms, samples; ``case``: path of a golden case on
        the host, or None.
    """
    models: dict[str, dict[str, Any]] = {}
    case = None
    for answer in health:
        if "models" not in answer:  # the endpoint was not asked, or did not answer
            continue
        for model, asked in zip(answer["models"], answer["item"]["models"], strict=True):
            golden = model.get("golden") or []
            models.setdefault(
                model["name"],
                {
                    "name": model["name"],
                    "version": model["version"],
                    "passed": sum(bool(entry["passed"]) for entry in golden),
                    "cases": len(golden),
                    "labels": [entry["label"] for entry in golden if entry.get("label")],
                },
            )
            if case is None and golden:
                case = f"{asked['golden']}/{golden[0]['case']}.json"
    rows = {(row["model"], row["protocol"]): row for row in previous.get("latency", ()) if row["model"] in models}
    for answer in latency:
        protocol = "REST" if answer["item"]["endpoint"].startswith("http") else "gRPC"
        for model in answer.get("models", ()):
            figures = {name: model[name] for name in (*PERCENTILES, "samples") if name in model}
            rows[model["name"], protocol] = {"model": model["name"], "protocol": protocol, **figures}
    return {"models": list(models.values()), "latency": list(rows.values()), "case": case}
