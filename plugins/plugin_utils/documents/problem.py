# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mistake in what a person wrote: where it stands, what was seen there, what is allowed."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

Path = tuple[str | int, ...]
_LISTED = 20


@dataclass(frozen=True)
class Positions:
    """Where a document was read: the file and line (1 is the first) of each path in it.

    `source` says what it is where no file is known, such as a host's variables.
    """

    source: str = ""
    places: Mapping[Path, tuple[str, int]] = field(default_factory=dict)

    def find(self, path: Path) -> tuple[str, int | None]:
        """Return file and line of `path`, or of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.source, None


@dataclass(frozen=True)
class Problem:
    """One mistake. `seen` and `remedy` complete the message; `hosts` are those that it concerns."""

    what: str
    path: Path = ()
    seen: str = ""
    remedy: str = ""
    file: str = ""
    line: int | None = None
    hosts: tuple[str, ...] = ()

    def located(self, positions: Positions, prefix: Path = ()) -> Problem:
        """Return the problem with the file and line of its path below `prefix`."""
        path = prefix + self.path
        file, line = positions.find(path)
        return replace(self, path=path, file=file, line=line)

    def error(self) -> FleetError:
        """Return the problem as the collection's exception."""
        where = f"{self.file}:{self.line}" if self.file and self.line else self.file
        parts = [where, path_text(self.path), f"host {_listed(self.hosts)}" if self.hosts else ""]
        return FleetError(
            self.what, where=", ".join(part for part in parts if part), seen=self.seen, remedy=self.remedy
        )

    def __str__(self) -> str:
        return str(self.error())


class InventoryError(FleetError):
    """Everything that is wrong with what people wrote, at once. As text each of its `errors` has a line."""

    def __init__(self, errors: Iterable[FleetError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(map(str, self.errors)))

    def __str__(self) -> str:
        return self.what

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> InventoryError:
        """Return the exception for these problems; those that differ in nothing but their hosts are one."""
        hosts: dict[Problem, dict[str, None]] = {}
        for problem in problems:
            hosts.setdefault(replace(problem, hosts=()), {}).update(dict.fromkeys(problem.hosts))
        return cls(replace(problem, hosts=tuple(names)).error() for problem, names in hosts.items())


def errors_of(error: FleetError) -> list[FleetError]:
    """Return the errors that `error` is made of: itself, unless it holds several."""
    return error.errors if isinstance(error, InventoryError) else [error]


def report(problems: Iterable[Problem]) -> str:
    """Return all problems, one a line; those that differ in nothing but their hosts as one."""
    return str(InventoryError.of(problems))


def choices(allowed: Iterable[object], seen: object = None) -> str:
    """Return the allowed values as the end of a sentence, and the one that was probably meant."""
    names = [str(name) for name in allowed]
    if not names:
        return "there is none to choose from"
    near = difflib.get_close_matches(seen, names, n=1) if isinstance(seen, str) else []
    return f"use one of {_listed(names)}" + (f"; did you mean {near[0]}" if near else "")


def endless(path: Path, file: str = "") -> Problem:
    """Return the problem of a document that holds itself, which YAML's anchors allow."""
    return Problem(
        "An anchor refers to itself", path, remedy="remove the alias (*) inside its own anchor (&)", file=file
    )


def path_text(path: Path) -> str:
    """Return a path as people write it: ``catalogue[1].slo.p95_ms``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_positions(text: str, file: str) -> Positions:
    """Return the places of a YAML document. Values with tags, such as vaulted ones, are not read."""
    places: dict[Path, tuple[str, int]] = {}

    def walk(node: yaml.Node | None, path: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, str(key.value))
                places[place] = (file, key.start_mark.line + 1)
                walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                places[*path, index] = (file, item.start_mark.line + 1)
                walk(item, (*path, index))

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return Positions(file, places)


def shown(value: Any) -> str:
    """Return a value as it may stand in a message: short, and with the type that YAML made of it."""
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return (text if len(text) <= 80 else text[:77] + "...") + ("" if isinstance(value, str) else f" ({_kind(value)})")


def _kind(value: Any) -> str:
    """Return what a value is, also where Ansible has a class of its own for it."""
    kinds = {
        bool: "true or false",  # before numbers, which Python takes it for
        int: "number",
        float: "number",
        Mapping: "mapping",
        list: "list",
        datetime.date: "date",
        type(None): "nothing",
    }
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), type(value).__name__)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
