# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module host_preflight, readable by a Python that is too old for the rest."""

from __future__ import annotations

from typing import Any

_NAMES = {"type": "list", "elements": "str", "default": []}
_REQUIRED = {"type": "str", "required": True}
_TEXT = {"type": "str", "default": ""}


def _list_of(**options: Any) -> dict[str, Any]:
    return {"type": "list", "elements": "dict", "default": [], "options": options}


ARGUMENT_SPEC: dict[str, Any] = {
    "architecture": {"type": "str", "choices": ["amd64", "arm64"]},
    "demand": {"type": "dict", "default": {}},  # the action plugin gives its items to the options of their names
    "problems": _list_of(
        finding={"type": "str", "choices": ["inventory", "signature", "unsigned", "unchecked"], "default": "inventory"},
        what=_REQUIRED,
        where=_TEXT,
        seen=_TEXT,
        remedy=_TEXT,
    ),
    "content": _list_of(
        kind={"type": "str", "choices": ["image", "model", "mirrored"], "required": True},
        name=_REQUIRED,
        repository=_REQUIRED,
        digest=_REQUIRED,
        size={"type": "int", "required": True},
        runtime={"type": "str", "default": "runtime"},
    ),
    "registry": {
        "type": "dict",
        "options": {
            "address": _REQUIRED,
            "ip_address": _TEXT,
            "ca_certificate": _TEXT,
            "username": _TEXT,
            "password": {"type": "str", "default": "", "no_log": True},
            "client_certificate": _TEXT,
            "client_key": {"type": "str", "default": "", "no_log": True},
        },
    },
    "root": {"type": "path", "default": "/var/lib/edgeml"},
    "mirror_root": {"type": "path", "default": "/var/lib/edgeml/mirror"},
    "memory_mb": {"type": "dict", "default": {}},
    "ports": _list_of(address=_REQUIRED, port={"type": "int", "required": True}, variable=_REQUIRED),
    "directories": {"type": "dict", "default": {}},
    "certificates": _list_of(
        path=_REQUIRED,
        not_before={"type": "float", "default": 0},
        not_after={"type": "float", "default": 0},
        error=_TEXT,
    ),
    "engine_packages": {"type": "list", "elements": "str"},
    "engine_is_here": {"type": "bool", "default": False},
    "packages_from_mirror": {"type": "bool", "default": False},
    "engine_configuration": {"type": "dict", "default": {}},
    "requires": {
        "type": "dict",
        "default": {},
        "options": {
            "packages": _NAMES,
            "devices": _NAMES,
            "gpus": _NAMES,
            "kernel_modules": _NAMES,
            "sysctls": _NAMES,
        },
    },
    "controller_time": {"type": "float"},
    "ignore": _NAMES,
    "refuse": {"type": "bool", "default": True},
}
