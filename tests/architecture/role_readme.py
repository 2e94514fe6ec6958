# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write each role's README.md from its argument_specs.yml: `python tests/architecture/role_readme.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"


def render(role: Path) -> str:
    """Return the README of a role."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    first, main = next(iter(specs.items()))
    lines = [f"# edgeml.fleet.{role.name}", "", main["short_description"] + ".", ""]
    lines += [f"{text}\n" for text in main.get("description", [])]
    for entry, spec in specs.items():
        if entry != first and spec["options"] == main["options"]:
            lines += [f"Entry point `{entry}`: that part alone, with the same variables.", ""]
            continue
        if entry != first:
            lines += [f"## Entry point `{entry}`", "", spec["short_description"] + ".", ""]
        lines += _table(spec["options"])
    return "\n".join(lines).rstrip() + "\n"


def _table(options: dict[str, Any]) -> list[str]:
    if not options:
        return ["It has no variables.", ""]
    lines = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        description = option["description"]
        text = " ".join(description) if isinstance(description, list) else description
        default = f"`{option['default']}`" if "default" in option else "from the inventory"
        if "choices" in option:
            text += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
        lines.append(f"| `{name}` | {option['type']} | {default} | {text} |")
    return [*lines, ""]


if __name__ == "__main__":
    for directory in sorted(ROLES.iterdir()):
        (directory / "README.md").write_text(render(directory))
