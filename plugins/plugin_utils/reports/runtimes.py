# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtimes of a device as a report shows them: what serves, whether it meets its objective, where it is scraped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import PERCENTILES

_LOOPBACK = ("127.", "localhost", "[::1]")


def runtime_of(
    told: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a device tells of one runtime, with the objectives that are wanted and what was measured."""
    active, previous = as_mapping(told.get("active")), as_mapping(told.get("previous"))
    meant = {
        model["name"]: model for runtime in wanted if runtime["name"] == told["name"] for model in runtime["models"]
    }
    gates = next(
        (
            entry.get("gates") or []
            for entry in reversed(told.get("history") or [])
            if entry.get("outcome") == "active" and entry.get("release") == active.get("id")
        ),
        [],
    )
    return {
        "name": str(told["name"]),
        "release": str(active.get("id", "")),
        "image": str(active.get("image", "")),
        "since": str(told.get("since") or ""),
        "previous": str(previous.get("id", "")),
        "serving": bool(told.get("serving")),
        "drift": [str(line) for line in told.get("drift") or ()],
        "refused": [dict(entry) for entry in told.get("refused") or ()],
        "models": [
            _model(model, as_mapping(meant.get(model["name"])), measured.get("latency") or [], gates)
            for model in active.get("models", ())
        ],
    }


def _model(
    model: Mapping[str, Any],
    meant: Mapping[str, Any],
    latency: Sequence[Mapping[str, Any]],
    gates: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    objective = dict(meant.get("objective", {}))
    protocol, measured = _measured(model["name"], str(meant.get("protocol", "grpc")), latency, gates)
    compared = [(measured[key], objective[key]) for key in PERCENTILES if key in objective and key in measured]
    return {
        **{key: str(model.get(key) or "") for key in ("name", "version", "variant", "digest")},
        "protocol": protocol,
        "objective": objective,
        "measured": measured,
        "met": all(value <= allowed for value, allowed in compared) if compared else None,
    }


def _measured(
    name: str, protocol: str, latency: Sequence[Mapping[str, Any]], gates: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the protocol and the figures that an objective is judged by.

    Those that a converge or verify measured over the objective's protocol, else over another one, else those of the
    gate that let the release in. Nothing measured gives {}.
    """
    rows = [row for row in latency if row.get("model") == name]
    # MQTT is not measured from outside of the runtime.
    rows.sort(key=lambda row: str(row.get("protocol", "")).lower() != protocol)
    if rows:
        figures = {key: float(rows[0][key]) for key in PERCENTILES if key in rows[0]}
        samples = {"samples": int(rows[0]["samples"])} if "samples" in rows[0] else {}
        return str(rows[0]["protocol"]).lower(), {**figures, **samples, "source": "check"}
    figures = {
        f"{gate['gate']}_ms": float(gate["measured"])
        for gate in gates
        if gate.get("model") == name and f"{gate.get('gate')}_ms" in PERCENTILES
    }
    return protocol, {**figures, "source": "gate"} if figures else {}


def taken_back(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of the release that was rolled back last; {} if the controller has tried one since.

    The way back writes what was left first, and what is active again after it.
    """
    entry: dict[str, Any]
    for entry in reversed(history):
        if entry.get("outcome") == "rolled_back":
            return entry
        if entry.get("by") not in ("guard", "operator"):
            break
    return {}


def last_known(ledger: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the ledger knows of the runtimes of a host that does not answer."""
    last = {str(line.get("runtime")): line for line in ledger if line.get("outcome") in ("active", "removed")}
    return [
        {
            **runtime_of(
                {"name": name, "active": {"id": line.get("release"), "models": line.get("models") or []},
                 "since": line["time"], "serving": None},
                wanted, {},
            ),
            "serving": None,
        }
        for name, line in last.items() if line["outcome"] == "active"
    ]  # fmt: skip


def targets(wanted: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return where each runtime's metrics can be scraped, from the controller's side of the network.

    A listener on loopback can be scraped on its own machine only, so it counts where that is the controller.
    """
    host = str(variables.get("ansible_host") or variables.get("inventory_hostname") or "")
    local = variables.get("ansible_connection") == "local"
    found = []
    for runtime in wanted:
        for address in runtime["metrics"]:
            where, _separator, port = address.rpartition(":")
            if where == "unix" or (where.startswith(_LOOPBACK) and not local):
                continue
            if where in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, nothing is bound
                where = f"[{host}]" if ":" in host else host
            found.append(
                {
                    "runtime": runtime["name"],
                    "address": f"{where}:{port}",
                    "scheme": "https" if runtime["tls"] else "http",
                }
            )
            break
    return found


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return an answer of a host, empty if it is none."""
    return value if isinstance(value, Mapping) else {}
