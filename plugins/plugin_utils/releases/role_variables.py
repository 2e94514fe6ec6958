# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's variables say, held against the specifications of the collection's roles before a host is touched."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import ArgumentValueError
from ansible.parsing.vault import EncryptedString
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import address_host, address_port, is_ip_address
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.converged import COLLECTION
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, choices, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins

# No value below a variable whose name holds one of these words is in a message: a secret may stand in a wrong place.
SECRET_WORDS = (
    "inference_runtime_access",
    "inference_runtime_mqtt",
    "accounts",
    "credentials",
    "fallbacks",
    "key",
    "passphrase",
    "password",
    "token",
)
NOT_SHOWN = "(not shown, since it may be a secret)"
# Variables whose content is held against meta/schemas/variables.schema.json.
STRUCTURES = tuple(f"inference_runtime_{name}" for name in ("access", "engine", "limits", "mqtt"))
# The least and the greatest number, by the end of a variable's name; all others are sizes, counts and seconds.
RANGES: dict[str, tuple[float, float]] = {
    "_port": (1, 65535),
    "_signers_needed": (1, math.inf),
    "_start_timeout": (1, math.inf),
    "_verify_samples": (1, math.inf),
    "_parallel": (1, math.inf),
    "_drain_seconds": (0, 3600),
}
NOT_NEGATIVE = (0, math.inf)
LISTEN_REMEDY = "give an IP address of the host, such as 127.0.0.1, or 0.0.0.0 for all of them"
_KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "path": "a path",
    "str": "text",
}
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9-]*\.?")


def is_secret(name: str) -> bool:
    """Return whether a secret may stand in the variable."""
    return any(word in name for word in SECRET_WORDS)


@functools.cache
def role_options() -> dict[str, dict[str, Any]]:
    """Return the specification of each variable of the collection's roles, by name."""
    options: dict[str, dict[str, Any]] = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in sorted(COLLECTION.glob("roles/*/meta/argument_specs.yml")):
        specification = yaml.load(file.read_text(encoding="utf-8"), loader)  # noqa: S506 - one of the two safe ones
        for entry in specification["argument_specs"].values():
            options = {**entry["options"], **options}
    return options


def variable_problems(variables: Mapping[str, Any]) -> list[Problem]:
    """Return which of a host's variables have a value that their role cannot take.

    What cannot be computed here, since it needs the defaults of a role, is left to that role; so is a secret text.
    """
    problems = []
    for name in sorted(role_options().keys() & set(variables)):
        option = role_options()[name]
        is_text = option.get("type", "str") == "str" and not name.endswith("_file")
        if name in STRUCTURES or (is_secret(name) and is_text):
            continue
        try:
            value = variables[name]
            found = None if isinstance(value, EncryptedString) else _problem(name, option, native(value, vaulted=""))
        except AnsibleError:
            continue
        if found:
            problems.append(found.located(origins({name: value}, (name,))))
    return problems


def _problem(name: str, option: Mapping[str, Any], value: Any) -> Problem | None:
    kind = option.get("type", "str")
    allowed = _KINDS[kind] + (f" of {_KINDS[option['elements']]} each" if "elements" in option else "")
    seen = NOT_SHOWN if is_secret(name) else shown(value)
    wrong_type = Problem("Wrong type", (name,), seen, f"give {allowed}: {option['description']}".rstrip("."))
    if value is None:  # lists and mappings without a default may be left empty
        return None if kind in ("dict", "list") and "default" not in option else wrong_type
    if kind in ("path", "str") and isinstance(value, (Mapping, list)):
        return wrong_type
    plain = {key: option[key] for key in ("type", "elements", "choices") if key in option}
    result = ArgumentSpecValidator({name: plain}).validate({name: value})
    if any(not isinstance(error, ArgumentValueError) for error in result.errors.errors):
        return wrong_type
    value = result.validated_parameters[name]
    remedy = _not_allowed(name, option, value)
    return Problem("Value not allowed", (name,), seen, remedy) if remedy else None


def _not_allowed(name: str, option: Mapping[str, Any], value: Any) -> str:
    """Return what to do about a value of the right type, "" if it is allowed."""
    for item in value if isinstance(value, list) else [value]:
        if "choices" in option and item not in option["choices"]:
            return choices(option["choices"], item)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = next((range_ for end, range_ in RANGES.items() if name.endswith(end)), NOT_NEGATIVE)
        if not (low <= value <= high and math.isfinite(value)):
            return f"give a number of at least {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    if str(option.get("default", "")).startswith("/") and not str(value).startswith("/"):
        return "give an absolute path on the host"
    if name.endswith("_architectures") and not value:
        return "name at least one architecture"
    if name.endswith("_listen_address") and not is_address(value):
        return LISTEN_REMEDY
    if name.endswith("_ip_address") and value and not is_ip_address(value.strip("[]")):
        return "give an IP address, or nothing where a name service knows the name"
    return ""


def is_address(text: str) -> bool:
    """Return whether a text is an IP address or a host name, with or without a port."""
    host = address_host(text)
    if is_ip_address(host):
        return True
    return bool(_HOST_NAME.fullmatch(host)) and (":" not in text or address_port(text) is not None)
