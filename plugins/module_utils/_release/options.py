# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module runtime_release, and the release that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import SERVICE_USER
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    Desired,
    ForeignServer,
    Limits,
    Model,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import SIGNATURES_ARGUMENT

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["active", "previous", "absent"], "default": "active"},
    "release": {"type": "str", "default": ""},
    "force": {"type": "bool", "default": False},
    "name": {"type": "str", "default": "runtime"},
    "runtimes": {"type": "list", "elements": "str"},
    "image": {"type": "str"},
    "image_size": {"type": "int", "default": 0},
    "models": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "repository": {"type": "str", "required": True},
            "digest": {"type": "str", "required": True},
            "size": {"type": "int", "required": True},
            "variant": {"type": "str", "default": "default"},
            "golden_cases": {"type": "int", "default": 0},
            "p50_ms": {"type": "float"},
            "p95_ms": {"type": "float"},
            "p99_ms": {"type": "float"},
            "max_regression": {"type": "float"},
            "concurrency": {"type": "int", "default": 0},
            "protocol": {"type": "str", "choices": ["grpc", "rest"], "default": "grpc"},
            "protocols": {
                "type": "list",
                "elements": "str",
                "choices": ["rest", "grpc", "mqtt"],
                "default": ["rest", "grpc", "mqtt"],
            },
            "options": {"type": "dict", "default": {}},
            "shadow": {
                "type": "dict",
                "options": {
                    "share": {"type": "float", "required": True},
                    "seconds": {"type": "float", "default": 60},
                    "requests": {"type": "int", "default": 200},
                    "max_different": {"type": "float", "default": 0.01},
                },
            },
        },
    },
    "configuration": {"type": "dict", "default": {}},
    "secrets_directory": {"type": "path", "default": "", "no_log": False},
    "secrets": {"type": "dict", "no_log": True},
    "limits": {
        "type": "dict",
        "default": {},
        "options": {
            "memory_mb": {"type": "int", "default": 0},
            "cpus": {"type": "float", "default": 0},
            "pids": {"type": "int", "default": 256},
            "shared_memory_mb": {"type": "int", "default": 0},
            "cpuset": {"type": "str", "default": ""},
        },
    },
    "environment": {"type": "dict", "default": {}},
    "devices": {"type": "list", "elements": "str", "default": []},
    "gpus": {"type": "list", "elements": "str", "default": []},
    "server": {
        "type": "dict",
        "options": {
            "command": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "rest_port": {"type": "int"},
            "grpc_port": {"type": "int"},
            "metrics_port": {"type": "int"},
            "models_directory": {"type": "str", "default": "/mnt/models"},
            "user": {"type": "str", "default": f"{SERVICE_USER}:{SERVICE_USER}"},
        },
        "required_one_of": [("rest_port", "grpc_port")],
    },
    "ca_file": {"type": "path", "default": ""},
    "lock": {"type": "dict"},
    "signatures": SIGNATURES_ARGUMENT,
    "root": {"type": "path", "default": "/var/lib/edgeml"},
    "start_timeout": {"type": "float", "default": 60},
    "probation_seconds": {"type": "int", "default": 600},
    "objective_minutes": {"type": "float", "default": 5},
    "guard_repairs": {"type": "bool", "default": False},
}


def desired_release(options: Mapping[str, Any]) -> Desired:
    """Return the release that the module's options describe."""
    server = options["server"]
    return Desired(
        image=options["image"],
        image_size=options["image_size"],
        models=tuple(map(Model.from_values, options["models"])),
        configuration=options["configuration"],
        secrets_directory=options["secrets_directory"],
        secrets=options["secrets"],
        limits=Limits(**options["limits"]),
        environment=_texts(options["environment"]),
        devices=tuple(sorted(options["devices"])),
        gpus=tuple(sorted(options["gpus"])),
        server=ForeignServer(
            **{**server, "command": tuple(server["command"]), "environment": _texts(server["environment"])}
        )
        if server
        else None,
    )


def _texts(environment: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in environment.items()}
