# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's variables say, held against the specifications of the collection's roles before a host is touched."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
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
from jinja2.exceptions import UndefinedError

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
ROOMS = ("meta/schemas/*.json", "playbooks/**/*.yml", "plugins/**/*.py", "roles/**/*.yml")
ALIKE = 0.85  # share of the letters, behind the prefix, that a mistyped name has in common with the right one
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


@functools.cache
def prefixes() -> tuple[str, ...]:
    """Return how the names of the roles' variables begin; those of the role defaults begin like the collection's."""
    roles = (path.name for path in (COLLECTION / "roles").iterdir() if (path / "meta" / "argument_specs.yml").exists())
    return tuple(sorted("edgeml_" if role == "defaults" else f"{role}_" for role in roles))


@functools.cache
def known_names() -> frozenset[str]:
    """Return all names with these prefixes that the collection itself uses, in whatever file."""
    pattern = re.compile(rf"\b(?:{'|'.join(prefixes())})[a-z0-9_]+")
    files = [file for room in ROOMS for file in COLLECTION.glob(room)]
    return frozenset(name for file in files for name in pattern.findall(file.read_text(encoding="utf-8")))


def mistyped_variables(names: Iterable[str]) -> list[Problem]:
    """Return the variables that nothing of the collection knows, and whose name is nearly one that it does."""
    problems = []
    for name in sorted({*names} - known_names()):
        prefix = next((prefix for prefix in prefixes() if name.startswith(prefix)), "")
        alike = {known.removeprefix(prefix) for known in known_names() if prefix and known.startswith(prefix)}
        near = difflib.get_close_matches(name.removeprefix(prefix), alike, n=1, cutoff=ALIKE) if prefix else []
        if near:
            remedy = f"did you mean {prefix}{near[0]}; give a variable of your own a name that resembles none of these"
            problems.append(Problem("The collection has no such variable", (name,), "", remedy))
    return problems


def variable_problems(variables: Mapping[str, Any]) -> list[Problem]:
    """Return which of a host's variables have a value that their role cannot take, or a mistyped name.

    What cannot be computed here, since it needs the defaults of a role, is left to that role; so is a secret text.
    """
    problems = mistyped_variables(str(name) for name in variables if not str(name).startswith("inference_runtime_"))
    for name in sorted(role_options().keys() & set(variables)):
        option = role_options()[name]
        is_text = option.get("type", "str") == "str" and not name.endswith("_file")
        if name in STRUCTURES or (is_secret(name) and is_text):
            continue
        try:
            value = variables[name]
            found = None if isinstance(value, EncryptedString) else _problem(name, option, native(value, vaulted=""))
        except (AnsibleError, UndefinedError):  # the latter from within a template
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
