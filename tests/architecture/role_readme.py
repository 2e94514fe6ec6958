# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write each role's README.md from its argument_specs.yml and example: `python tests/architecture/role_readme.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
EXAMPLES = ROLES.parent / "docs" / "examples"


def render(role: Path) -> str:
    """Return the README of a role."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    first, main = next(iter(specs.items()))
    lines = [f"# edgeml.fleet.{role.name}", "", main["short_description"] + ".", ""]
    lines += [f"{_markdown(text)}\n" for text in main.get("description", [])]
    lines += ["## Example", "", "```yaml", _example(role.name), "```", "", "## Variables", "", *_table(main["options"])]
    others = {name: spec for name, spec in specs.items() if name != first}
    alike = {name: spec for name, spec in others.items() if spec["options"] == main["options"]}
    if alike:
        lines += ["## Entry points with the same variables", "", "| Entry point | What it does |", "|---|---|"]
        lines += [f"| `{name}` | {spec['short_description']}. |" for name, spec in alike.items()]
        lines += [""]
    for name, spec in others.items():
        if name not in alike:
            lines += [f"## Entry point `{name}`", "", spec["short_description"] + ".", "", *_table(spec["options"])]
    return "\n".join(lines).rstrip() + "\n"


def _example(role: str) -> str:
    """Return the example play, without licence and start of the document."""
    return (EXAMPLES / f"{role}.yml").read_text().partition("---\n")[2].rstrip()


def _table(options: dict[str, Any]) -> list[str]:
    if not options:
        return ["It has no variables.", ""]
    lines = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        description = option["description"]
        text = _markdown(" ".join(description) if isinstance(description, list) else description)
        choices = [f"`{choice}`" for choice in option.get("choices", []) if choice != ""]
        if choices:
            text += f" One of {', '.join(choices)}."
        lines.append(f"| `{name}` | {option['type']} | {_default(option)} | {text} |")
    return [*lines, ""]


def _default(option: dict[str, Any]) -> str:
    """Return a default as an inventory would say it."""
    if "default" not in option:
        return "from the inventory"
    value = option["default"]
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _markdown(text: str) -> str:
    """Return a text of Ansible's documentation with its code marks as Markdown."""
    return re.sub(r"C\(([^)]*)\)", r"`\1`", text)


if __name__ == "__main__":
    for directory in sorted(ROLES.iterdir()):
        (directory / "README.md").write_text(render(directory))
