# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleets of any size as the playbook `report` sees them: hosts in every state, with what they answer."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 11, 28, 6, 0, tzinfo=UTC)
SERIAL = 7
MODELS: dict[str, dict[str, Any]] = {
    "digits": {"version": "1.1.0", "variant": "int8", "protocol": "grpc", "objective": {"p95_ms": 5.0}},
    "file_type": {
        "version": "1.0.0", "variant": "default", "protocol": "grpc", "objective": {"p50_ms": 50.0, "p95_ms": 100.0},
    },
    "surface_defects": {"version": "2.3.1", "variant": "fp32", "protocol": "rest", "objective": {"p95_ms": 25.0}},
}  # fmt: skip
CITIES = ("berlin", "lyon", "osaka", "porto", "gdansk", "turin", "leeds", "malmo", "austin", "pune")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def certificate(end: datetime) -> str:
    """Return a self-signed certificate that ends then."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1, tzinfo=UTC), end)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def one_model_lock(registry: str, image_size: int, model_size: int) -> dict[str, Any]:
    """Return a lock of serial 4 with the model digits 1.0.0, the runtime and the mirror, for amd64; sizes in bytes."""
    platforms = {"amd64": {"digest": "sha256:" + "a" * 64, "size": image_size}}
    variant = {
        "repository": "edgeml/models/digits", "digest": "sha256:" + "c" * 64, "index": "sha256:" + "d" * 64,
        "platforms": platforms, "blob": {"digest": "sha256:" + "e" * 64, "size": model_size}, "golden_cases": 3,
    }  # fmt: skip
    image = {"digest": "sha256:" + "b" * 64, "platforms": platforms}
    return {
        "serial": 4,
        "registry": registry,
        "images": {
            "runtime": {"repository": "edgeml/runtime", **image},
            "mirror": {"repository": "edgeml/mirror", **image},
        },
        "models": {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant}}}},
    }


def wanted(*names: str) -> dict[str, Any]:
    """Return what the inventory says of a host that is to run these models."""
    models = [{"name": name, "digest": f"sha256:{digest(name)}", **MODELS[name]} for name in names]
    return {"name": "runtime", "metrics": ["0.0.0.0:8002"], "tls": True, "models": models}


def active(runtime: dict[str, Any], **versions: str) -> dict[str, Any]:
    """Return the release that a host describes: what is wanted, but for these versions."""
    models = [
        {
            **{key: model[key] for key in ("name", "variant", "digest")},
            "version": versions.get(model["name"], model["version"]),
            "options": {},
            "protocols": ["rest", "grpc"],
        }
        for model in runtime["models"]
    ]
    for model in models:
        if model["name"] in versions:
            model["digest"] = f"sha256:{digest(model['name'] + model['version'])}"
    image = f"registry.edgeml.internal:5443/edgeml/runtime@sha256:{digest('image')}"
    return {"id": digest(str(models)), "image": image, "models": models, "settings": {}}


def entry(release: dict[str, Any], outcome: str, time: str, reason: str = "", by: str = "controller") -> dict[str, Any]:
    """Return a line of a host's history."""
    models = [{key: model[key] for key in ("name", "version", "variant", "digest")} for model in release["models"]]
    return {
        "time": time, "runtime": "runtime", "release": release["id"], "outcome": outcome, "reason": reason, "by": by,
        "models": models, "gates": [],
    }  # fmt: skip


def device(
    site: str, state: str = "current", *, models: tuple[str, ...] = ("digits", "file_type"), share: float = 0.3,
    reason: str = "", ends: datetime = datetime(2059, 12, 31, tzinfo=UTC), architecture: str = "arm64",
) -> dict[str, Any]:  # fmt: skip
    """Return the variables of a device; `share` is its latency as a share of what is allowed."""
    runtime = wanted(*models)
    since = "2026-11-20T04:30:00Z"
    release = active(runtime)
    comparison: dict[str, Any] = {"unchanged": state == "current", "reasons": {}}
    told: dict[str, Any] = {
        "name": "runtime", "active": release, "previous": None, "since": since, "serving": True, "drift": [],
        "running": "", "refused": [], "history": [entry(release, "active", since)],
    }  # fmt: skip
    other = "the inventory, the lock or the collection says something else"
    if state == "pending":
        told["active"] = active(runtime, digits="1.0.0")
        told["history"] = [entry(told["active"], "active", since)]
        comparison["reasons"] = {"inference_runtime": [other]}
    elif state == "failed":
        told["active"] = active(runtime, digits="1.0.0")
        reason = reason or "The model digits 1.1.0 misses its objective: p95 6.1 ms, 5 ms allowed"
        told["history"] = [
            entry(told["active"], "active", since),
            entry(release, "refused", "2026-11-28T05:00:00Z", reason),
        ]
        told["refused"] = [{"release": release["id"], "reason": reason, "time": "2026-11-28T05:00:00Z"}]
        comparison["reasons"] = {"inference_runtime": [other]}
    elif state == "drifted":
        told |= {"serving": False, "drift": [reason or "the container edgeml-runtime does not run"]}
        comparison["reasons"] = {"inference_runtime": [reason or "container edgeml-runtime is not as it was"]}
    elif state == "unreachable":
        reason = reason or "Failed to connect to the host via ssh: connect to host port 22: No route to host"
        comparison["reasons"] = {"host": [f"it cannot be reached: {reason}"]}
    latency = [
        {
            "model": name, "protocol": {"grpc": "gRPC", "rest": "REST"}[MODELS[name]["protocol"]], "samples": 200,
            **{
                key: round(MODELS[name]["objective"]["p95_ms"] * share * factor, 3)
                for key, factor in (("p50_ms", 0.8), ("p95_ms", 1), ("p99_ms", 1.4))
            },
        }
        for name in models
    ]  # fmt: skip
    variables: dict[str, Any] = {
        "edgeml_site": site,
        "edgeml_architecture": architecture,
        "ansible_host": "192.0.2.10",
        "edgeml_devices_comparison": comparison,
        "edgeml_report_expected": {
            "serial": SERIAL,
            "runtimes": [runtime],
            "measured": {"latency": latency},
            "certificates": [
                {"name": "server", "text": certificate(ends)},
                {"name": "authority", "text": certificate(datetime(2059, 12, 31, tzinfo=UTC))},
            ],
        },
        "edgeml_report_releases": {"runtimes": [told]},
    }
    if state == "unreachable":
        del variables["edgeml_report_releases"]
    return variables


def mirror(site: str, serial: int | None = SERIAL) -> dict[str, Any]:
    """Return the variables of a mirror that serves the content of this lock."""
    generation = {"exists": serial is not None, "lnk_target": f"/var/lib/edgeml/mirror/generations/{serial}"}
    return {
        "edgeml_site": site,
        "edgeml_mirrors_comparison": {"unchanged": serial == SERIAL, "reasons": {}},
        "edgeml_report_generation": {"stat": generation if serial is not None else {"exists": False}},
        "edgeml_report_mirror_expected": {
            "serial": SERIAL,
            "certificates": [{"name": "server", "text": certificate(datetime(2059, 12, 31, tzinfo=UTC))}],
        },
    }


def small() -> dict[str, dict[str, Any]]:
    """Return five devices of two sites, one in each state, and the mirrors."""
    return {
        "berlin-mirror": mirror("berlin"),
        "berlin-camera-1": device("berlin", share=1.4),
        "berlin-camera-2": device("berlin", "failed", architecture="amd64"),
        "berlin-gateway-1": device("berlin", "drifted", models=("surface_defects",)),
        "lyon-mirror": mirror("lyon", SERIAL - 1),
        "lyon-camera-1": device("lyon", "unreachable"),
        "lyon-camera-2": device("lyon", "pending", ends=NOW + timedelta(days=12, hours=1)),
    }


def ledger() -> list[dict[str, Any]]:
    """Return a ledger that knows what lyon-camera-1 ran before it went away three days ago."""
    release = active(wanted("digits", "file_type"), digits="1.0.0")
    of = {"host": "lyon-camera-1", "site": "lyon", "serial": 6, "rollout": ""}
    return [
        {**of, **entry(release, "active", "2026-10-01T08:00:00Z")},
        {**of, **entry(release, "pending", "2026-11-25T06:00:00Z", "Connection timed out")},
        {**of, **entry(release, "pending", "2026-11-27T06:00:00Z", "Connection timed out")},
    ]


def large(count: int = 2000, seed: int = 11) -> dict[str, dict[str, Any]]:
    """Return a fleet of ten sites, of which a few in a hundred have a problem."""
    chance = random.Random(seed)  # noqa: S311 the same fleet each time
    hosts: dict[str, dict[str, Any]] = {f"{city}-mirror": mirror(city, SERIAL - (city == "pune")) for city in CITIES}
    kinds: list[tuple[str, ...]] = [("digits", "file_type"), ("surface_defects",), tuple(MODELS)]
    for number in range(count):
        site = CITIES[number % len(CITIES)]
        state = chance.choices(
            ["current", "pending", "unreachable", "drifted", "failed"], [950, 30, 12, 5, 3]
        )[0]  # fmt: skip
        share = chance.lognormvariate(-1.4, 0.45)
        models = kinds[chance.randrange(len(kinds))]
        if state in ("pending", "failed") and "digits" not in models:
            models = kinds[0]
        hosts[f"{site}-camera-{number // len(CITIES) + 1:03}"] = device(
            site, state, models=models, share=share, architecture=chance.choice(["arm64", "amd64"])
        )
    return hosts
