# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups that hosts join by their site and architecture, and the groups that variants ask for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host import names as _names
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, choices, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import group_name

#: The groups of all architectures, whether any host has it or not.
ARCHITECTURE_GROUPS = frozenset(group_name("arch", architecture) for architecture in _names.ARCHITECTURES.values())
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def is_site(value: object) -> bool:
    """Return whether a value of edgeml_site can name a group."""
    return isinstance(value, str) and _SITE.fullmatch(value) is not None


def groups_joined(architecture: str | None, site: object) -> list[str]:
    """Return the groups of a host's architecture and site, as far as they are known."""
    joined = [group_name("arch", architecture)] if architecture else []
    return joined + ([group_name("site", str(site))] if is_site(site) else [])


def unknown_groups(models: Sequence[Mapping[str, Any] | None], known: Collection[str]) -> Iterator[Problem]:
    """Yield a problem for each group that a variant asks for and that no host can be in."""
    for index, model in enumerate(models):
        for number, variant in enumerate((model or {}).get("variants", ())):
            for position, name in enumerate(variant.get("when", {}).get("groups", ())):
                if name not in known:
                    path = ("catalogue", index, "variants", number, "when", "groups", position)
                    yield Problem(f"No group is called {name}", path, shown(name), choices(sorted(known), name))
