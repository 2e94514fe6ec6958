# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of a container image: what it holds, read strictly from what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PYTHON_VERSION = re.compile(r"3\.[0-9]+")
_PORT = re.compile(r"[1-9][0-9]{0,4}/(tcp|udp)")
_USER = re.compile(r"[0-9]+(:[0-9]+)?")


@dataclass(frozen=True)
class User:
    """One line of /etc/passwd and its group."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Base:
    """The lowest layer: files of exactly these Debian packages, whose dependencies are listed, not followed.

    `remove` and `keep` are path patterns (see PathPatterns); `keep` wins.
    """

    suite: str
    packages: tuple[str, ...]
    remove: tuple[str, ...]
    keep: tuple[str, ...]
    users: tuple[User, ...]
    mirror: str


@dataclass(frozen=True)
class PythonPackages:
    """The middle layer: wheels of a hash-locked requirements file, unpacked into `target`.

    `exclude` maps the name of each locked distribution that is left out to the reason.
    """

    version: str
    requirements: str
    target: str
    exclude: Mapping[str, str]
    remove: tuple[str, ...]


@dataclass(frozen=True)
class SourceFiles:
    """A file or directory below the source root, and its place in the image."""

    source: str
    target: str


@dataclass(frozen=True)
class ImageConfig:
    """How a container runs (OCI image specification, "config")."""

    user: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str]
    working_directory: str


@dataclass(frozen=True)
class Recipe:
    """One image. `base` may be absent when another image is built upon."""

    base: Base | None
    python: PythonPackages | None
    files: tuple[SourceFiles, ...]
    config: ImageConfig


class _Section:
    """A mapping of the recipe whose keys are taken one by one; what remains at the end is an error."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a mapping")
        self._left = dict(value)
        self._known: list[str] = []
        self.where = where

    def take(self, key: str, default: object) -> tuple[object, str]:
        self._known.append(key)
        value = self._left.pop(key, None)
        return (default if value is None else value), f"{self.where}.{key}"

    def text(self, key: str, default: str | None = None, pattern: re.Pattern[str] | None = None) -> str:
        value, where = self.take(key, default)
        if value is None:
            raise _missing(where)
        if not isinstance(value, str):
            raise _wrong(where, value, "a string; put numbers in quotes")
        if value != default and pattern and not pattern.fullmatch(value):
            raise _wrong(where, value, f"text of the form {pattern.pattern}")
        return value

    def number(self, key: str) -> int:
        value, where = self.take(key, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(where, value, "a whole number, 0 or more")
        return value

    def texts(self, key: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        value, where = self.take(key, [])
        if not isinstance(value, list):
            raise _wrong(where, value, "a list of strings")
        for item in value:
            if not isinstance(item, str) or not item or (pattern and not pattern.fullmatch(item)):
                raise _wrong(where, item, f"a list of strings of the form {pattern.pattern if pattern else 'text'}")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        value, where = self.take(key, {})
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a mapping of strings")
        for name, item in value.items():
            if not isinstance(name, str) or not name or not isinstance(item, str):
                raise _wrong(f"{where}.{name}", item, "a string; put numbers in quotes")
        return dict(value)

    def sections(self, key: str) -> list[_Section]:
        value, where = self.take(key, [])
        if not isinstance(value, list):
            raise _wrong(where, value, "a list of mappings")
        return [_Section(item, f"{where}[{number}]") for number, item in enumerate(value)]

    def section(self, key: str) -> _Section | None:
        value, where = self.take(key, None)
        return None if value is None else _Section(value, where)

    def end(self) -> None:
        for key in self._left:
            raise FleetError(
                "Unknown key in the image recipe",
                where=self.where,
                seen=str(key),
                remedy=f"use only {', '.join(self._known)}",
            )


def parse_recipe(value: object, where: str = "recipe") -> Recipe:
    """Return the recipe that a user wrote as a mapping; raise FleetError that names the key and what it allows."""
    section = _Section(value, where)
    base = section.section("base")
    python = section.section("python")
    files = section.sections("files")
    config = section.section("config") or _Section({}, f"{where}.config")
    section.end()
    return Recipe(
        base=_base(base) if base else None,
        python=_python(python) if python else None,
        files=tuple(_files(item) for item in files),
        config=_config(config),
    )


def _base(section: _Section) -> Base:
    base = Base(
        suite=section.text("suite", pattern=_NAME),
        packages=section.texts("packages", _NAME),
        remove=section.texts("remove"),
        keep=section.texts("keep"),
        users=tuple(_user(item) for item in section.sections("users")),
        mirror=section.text("mirror", ""),
    )
    section.end()
    if not base.packages:
        raise _missing(f"{section.where}.packages")
    return base


def _user(section: _Section) -> User:
    user = User(
        name=section.text("name", pattern=_USER_NAME),
        uid=section.number("uid"),
        gid=section.number("gid"),
        home=_image_path(section, "home", "/nonexistent"),
    )
    section.end()
    return user


def _python(section: _Section) -> PythonPackages:
    python = PythonPackages(
        version=section.text("version", pattern=_PYTHON_VERSION),
        requirements=_source_path(section, "requirements"),
        target=_image_path(section, "target"),
        exclude=section.mapping("exclude"),
        remove=section.texts("remove"),
    )
    section.end()
    return python


def _files(section: _Section) -> SourceFiles:
    files = SourceFiles(source=_source_path(section, "source"), target=_image_path(section, "target"))
    section.end()
    return files


def _config(section: _Section) -> ImageConfig:
    config = ImageConfig(
        user=section.text("user", pattern=_USER),
        entrypoint=section.texts("entrypoint"),
        command=section.texts("command"),
        environment=section.mapping("environment"),
        exposed_ports=section.texts("exposed_ports", _PORT),
        labels=section.mapping("labels"),
        working_directory=_image_path(section, "working_directory", "/"),
    )
    section.end()
    if not config.entrypoint:
        raise _missing(f"{section.where}.entrypoint")
    return config


def _image_path(section: _Section, key: str, default: str | None = None) -> str:
    value = section.text(key, default)
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or str(path) != value or ":" in value:
        raise _wrong(f"{section.where}.{key}", value, "an absolute path in the image, such as /opt/application")
    return value


def _source_path(section: _Section, key: str) -> str:
    value = section.text(key)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or str(path) != value or value == ".":
        raise _wrong(f"{section.where}.{key}", value, "a path below source_root, without ..")
    return value


def _missing(where: str) -> FleetError:
    return FleetError("The image recipe lacks a value", where=where, remedy="add it")


def _wrong(where: str, seen: object, allowed: str) -> FleetError:
    return FleetError("Wrong value in the image recipe", where=where, seen=repr(seen), remedy=f"give {allowed}")
