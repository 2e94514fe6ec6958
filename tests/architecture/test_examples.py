# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples in the documentation of modules and filters: whoever copies one has a task that Ansible takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play import Play
from ansible_collections.edgeml.fleet.plugins.filter.fleet import FilterModule
from jinja2 import Environment, nodes

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (ROOT / "plugins" / "filter").glob("*.yml"))
PREFIX = "edgeml.fleet."
#: What a template in an example may become, for each type of an option.
VALUES: dict[str, Any] = {
    "str": "text", "path": "/path", "raw": "anything", "int": 1, "float": 1.5, "bool": True, "list": [], "dict": {},
}  # fmt: skip
#: What YAML makes of a value that a module returns.
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "path": (str,), "int": (int,), "float": (float, int), "bool": (bool,),
    "list": (list,), "dict": (dict,),
}  # fmt: skip


def loaded(module: str) -> ModuleType:
    return importlib.import_module(f"ansible_collections.edgeml.fleet.plugins.modules.{module}")


def documented_spec(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument specification that documented options amount to."""
    names = ("type", "elements", "required", "default", "choices")
    return {
        name: {key: option[key] for key in names if key in option}
        | ({"options": documented_spec(option["suboptions"])} if "suboptions" in option else {})
        for name, option in (options or {}).items()
    }


def argument_spec(module: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specification and its constraints as the module gives them to `run`; else what it documents."""
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    shell = loaded(module)
    if hasattr(shell, "run"):
        monkeypatch.setattr(shell, "run", lambda spec, _work, **constraints: seen.append((dict(spec), constraints)))
        shell.main()
    return seen[0] if seen else (documented_spec(yaml.safe_load(shell.DOCUMENTATION).get("options")), {})


def filled(value: Any, option: Mapping[str, Any]) -> Any:
    """Return an example's value with a value of the option's type where the example has a template."""
    kind = option.get("type", "str")
    if isinstance(value, str) and value.startswith("{{") and value.endswith("}}"):
        return VALUES[kind]
    if isinstance(value, dict) and option.get("options"):
        return {key: filled(part, option["options"].get(key, {})) for key, part in value.items()}
    if isinstance(value, list):
        element = {"type": option.get("elements", "raw"), "options": option.get("options")}
        return [filled(part, element) for part in value]
    return value


def problems(arguments: Mapping[str, Any] | None, spec: dict[str, Any], constraints: Mapping[str, Any]) -> list[str]:
    """Return what the module would say of an example's arguments, before it does anything."""
    parameters = {name: filled(value, spec.get(name, {})) for name, value in (arguments or {}).items()}
    return list(ModuleArgumentSpecValidator(spec, **constraints).validate(parameters).error_messages)


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_examples_are_tasks_that_it_takes(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, constraints = argument_spec(module, monkeypatch)
    tasks = yaml.safe_load(loaded(module).EXAMPLES)
    # Refuses unknown keywords of a task and unknown modules.
    Play().load({"hosts": "all", "gather_facts": False, "tasks": tasks}, loader=DataLoader())
    shown = [task for task in tasks if PREFIX + module in task]
    assert shown, "no example is of this module"
    for task in shown:
        assert task.get("name"), task
        assert problems(task[PREFIX + module], spec, constraints) == [], task["name"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "x", "image": "y", "endpoint": "z", "port": 1}, "port. Supported parameters include"),
        ({"image": "y", "endpoint": "z"}, "missing required arguments: name"),
        ({"name": "x", "image": "y", "endpoint": "z", "pids": "many"}, "unable to convert to int"),
    ],
)
def test_an_example_that_is_wrong_is_found(
    arguments: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = problems(arguments, *argument_spec("service_container", monkeypatch))
    assert problem in found


def unlike(value: Any, described: Mapping[str, Any], place: str) -> list[str]:
    """Return where a sample is not what is documented of it."""
    kind = described.get("type", "raw")
    if value is None or kind == "raw":
        return []
    if not isinstance(value, TYPES[kind]):
        return [f"{place}: {value!r} is not of type {kind}"]
    contains = described.get("contains")
    if isinstance(value, list):
        element = {"type": described.get("elements", "raw"), "contains": contains}
        return [found for number, part in enumerate(value) for found in unlike(part, element, f"{place}[{number}]")]
    if isinstance(value, dict) and contains:
        found = [f"{place}: {key} is not documented" for key in value.keys() - contains.keys()]
        return found + [
            inner
            for key in value.keys() & contains.keys()
            for inner in unlike(value[key], contains[key], f"{place}.{key}")
        ]
    return []


@pytest.mark.parametrize("module", MODULES)
def test_samples_of_what_a_module_returns_are_as_documented(module: str) -> None:
    returned = yaml.safe_load(loaded(module).RETURN)
    samples = {name: value for name, value in returned.items() if "sample" in value}
    assert samples
    assert [found for name, value in samples.items() for found in unlike(value["sample"], value, name)] == []


@pytest.mark.parametrize("name", FILTERS)
def test_a_filters_examples_call_it_as_it_is_made(name: str) -> None:
    examples = yaml.safe_load((ROOT / "plugins" / "filter" / f"{name}.yml").read_text())["EXAMPLES"]
    assert isinstance(yaml.safe_load(examples), (dict, list)), "an example is YAML"
    own = FilterModule().filters()
    tree = Environment(autoescape=True).parse(examples)
    called = set()
    for node in tree.find_all(nodes.Filter):
        filter_, arguments = node.name, node.args
        if filter_ == "map" and arguments:
            filter_, arguments = arguments[0].as_const(), arguments[1:]
        if filter_.startswith(PREFIX):
            called.add(filter_.removeprefix(PREFIX))
            keywords = {str(keyword.key): keyword.value for keyword in node.kwargs}
            inspect.signature(own[filter_.removeprefix(PREFIX)]).bind(node.node, *arguments, **keywords)
    assert name in called
