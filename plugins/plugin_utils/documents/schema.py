# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks documents against the JSON Schemas in ``meta/schemas``. It runs on the controller."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from ansible.parsing.vault import EncryptedString
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import (
    Path,
    Positions,
    Problem,
    choices,
    path_text,
    shown,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library

try:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from referencing import Registry, Resource
except ImportError as error:
    _without_jsonschema: ImportError | None = error
else:
    _without_jsonschema = None

try:
    from ansible._internal._datatag._tags import Origin as _Origin
except ImportError:  # Ansible promises nothing about it; messages then lack files and lines of variables
    _Origin = None  # type: ignore[assignment,misc]

SCHEMAS = FilePath(__file__).parents[3] / "meta" / "schemas"
SECRETS = ("password", "token")  # keys whose values are in no message
VAULTED = "(encrypted with Ansible Vault)"
_MAY_BE_VAULTED = ("environment", "options", *SECRETS)
_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "nothing",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


def validate(
    document: Any, schema_name: str, positions: Positions | None = None, part: str = "", prefix: Path = ()
) -> list[Problem]:
    """Return every violation of ``meta/schemas/<schema_name>.schema.json``, in the document's order.

    Parameters
    ----------
    document : object
        What YAML or Ansible made of the text. Vaulted values are checked as text that nobody can read.
    positions : Positions
        Where the document was read from.
    part : str
        A definition of the schema (``$defs``) to check against instead of all of it.
    prefix : tuple
        The document's path in what it is a part of.
    """
    positions = positions or Positions()
    own = [*_vaulted(document), *_not_comparable(document)]
    found = [problem.located(positions, prefix) for problem in own]
    found += [
        problem.located(positions, prefix)
        for error in _validator(schema_name, part).iter_errors(native(document, vaulted=VAULTED))
        for problem in _problems(error)
    ]
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.line or 0, path_text(problem.path)))


def _vaulted(value: Any, path: Path = ()) -> Iterator[Problem]:
    """Yield vaulted values that stand where the plugin itself would have to read them."""
    if isinstance(value, EncryptedString):
        remedy = f"write it in clear; only the values of {' and '.join(_MAY_BE_VAULTED)} may be vaulted"
        yield Problem("A vaulted value cannot be used here", path, VAULTED, remedy)
    elif isinstance(value, (Mapping, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if key not in _MAY_BE_VAULTED:
                yield from _vaulted(item, (*path, key))


def _not_comparable(value: Any, path: Path = ()) -> Iterator[Problem]:
    """Yield numbers that YAML knows and that no limit of a schema excludes: .nan and .inf."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem("Not a number that can be compared", path, shown(value), "give a finite number")
    elif isinstance(value, (Mapping, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_comparable(item, (*path, key))


def native(value: Any, vaulted: str | None = None) -> Any:
    """Return `value` made of Python's own types, so that Ansible never takes any text in it for a template.

    Vaulted text stays as it is, encrypted, unless `vaulted` shall stand in its place.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str.__str__(k) if isinstance(k, str) else str(k): native(v, vaulted) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [native(item, vaulted) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, EncryptedString):
        return value if vaulted is None else vaulted
    return str(value)


def origins(variables: Any, path: Path) -> Positions:
    """Return the file and line of what is at `path` in `variables`, or of the nearest thing around it.

    Ansible keeps them with what it reads from files. There are none if it does not tell.
    """
    places: dict[Path, tuple[str, int]] = {}
    for length in range(len(path) + 1):
        if length:
            try:
                variables = variables[path[length - 1]]
            except (KeyError, IndexError, TypeError):
                break
        tag = _Origin.get_tag(variables) if _Origin is not None else None
        if tag is not None and tag.path and tag.line_num:
            places[path[:length]] = tag.path, tag.line_num
    return Positions(places=places)


def read_schema(name: str) -> None:
    """Read a schema before it is needed, for this process and those that it forks."""
    _validator(name, "")


@functools.cache
def _validator(name: str, part: str) -> Draft202012Validator:
    if _without_jsonschema:
        raise missing_library(_without_jsonschema)
    registry: Registry[Any] = Registry().with_resources(
        (file.name, Resource.from_contents(json.loads(file.read_text(encoding="utf-8"), object_hook=_strict_pattern)))
        for file in SCHEMAS.glob("*.schema.json")
    )
    reference = f"{name}.schema.json" + (f"#/$defs/{part}" if part else "")
    return Draft202012Validator({"$ref": reference}, registry=registry)


def _strict_pattern(schema: dict[str, Any]) -> dict[str, Any]:
    """Let the $ at the end of a pattern mean the end alone, as in JSON Schema; Python's allows a line's end there."""
    pattern = schema.get("pattern")
    return {**schema, "pattern": re.sub(r"\$$", r"\\Z", pattern)} if isinstance(pattern, str) else schema


def _problems(error: ValidationError) -> Iterator[Problem]:
    path: Path = tuple(error.absolute_path)
    instance, rule = error.instance, error.validator
    description = str(error.schema.get("description", "")) if isinstance(error.schema, dict) else ""
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for key in instance:
            if key not in known:
                yield Problem("Unknown key", (*path, key), shown(key), choices(known, key))
    elif rule == "required":
        for key in error.validator_value:
            if key not in instance:
                meaning = error.schema.get("properties", {}).get(key, {}).get("description", "")
                yield Problem(
                    f"The key {key} is missing",
                    path,
                    f"keys {', '.join(instance) or 'none'}",
                    f"add {key}" + (f": {_sentence(meaning)}" if meaning else ""),
                )
    elif rule == "dependentRequired":
        for key, needed in error.validator_value.items():
            for other in needed if key in instance else ():
                if other not in instance:
                    yield Problem(f"The key {key} needs {other}", path, f"keys {', '.join(instance)}", f"add {other}")
    elif rule in ("oneOf", "anyOf"):
        yield from _alternatives(error, path, description)
    elif rule == "type":
        kinds = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        remedy = f"give {' or '.join(_KINDS[kind] for kind in kinds)}"
        if "string" in kinds and isinstance(instance, (int, float)):
            remedy += f", in quotes, since YAML reads what looks like a number as one ({instance!r} here)"
        yield Problem(
            "Wrong type", path, shown(instance), remedy + (f": {_sentence(description)}" if description else "")
        )
    elif rule == "enum":
        yield Problem("Value not allowed", path, shown(instance), choices(error.validator_value, instance))
    elif rule == "uniqueItems":
        yield Problem("Listed twice", path, shown([x for x in instance if instance.count(x) > 1][:1]), "remove one")
    elif rule in ("pattern", "not"):
        yield Problem("Value not allowed", path, shown(instance), _sentence(description))
    else:
        yield Problem(
            "Value not allowed", path, shown(instance), f"{rule} is {error.validator_value}; {_sentence(description)}"
        )


def _alternatives(error: ValidationError, path: Path, description: str) -> Iterator[Problem]:
    """Yield what is wrong with the alternative that was meant: the one of this type with the least wrong."""
    branches: dict[int, list[ValidationError]] = {}
    for child in error.context or ():
        branches.setdefault(int(child.relative_schema_path[0]), []).append(child)
    fitting = [
        [problem for child in children for problem in _problems(child)]
        for children in branches.values()
        if not any(child.validator == "type" and not child.relative_path for child in children)
    ]
    fewest = min(map(len, fitting), default=0)
    meant = [problems for problems in fitting if len(problems) == fewest]
    if len(meant) == 1:
        yield from meant[0]
    else:
        yield Problem("Value not allowed", path, shown(error.instance), _sentence(description))


def _sentence(text: str) -> str:
    """Return a description as the end of a sentence."""
    small = text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
    return small.rstrip(".")
