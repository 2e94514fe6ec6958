# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a host and judge whether it can take what is meant for it. Reads only, with the standard library alone."""

from __future__ import annotations

from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.engine import (
    engine_kind,
    engine_network,
    engine_proxy,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.gpus import gpus
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    Examination,
    Host,
    Wanted,
    inventory_finding,
    judge,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.machine import (
    architecture,
    disk,
    is_present,
    kernel,
    memory,
    processor,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.network import ports, registry
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.places import directories, read_only
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.system import (
    certificates,
    clock,
    packages,
    requirements,
)


def examine(host: Host, wanted: Wanted) -> Examination:
    """Judge a host by what is meant for it; return all findings, those that refuse first."""
    facts = host.facts()
    engine = host.engine()
    missing = [content for content in wanted.content if not is_present(host, engine, wanted, content)]
    findings = [
        *map(inventory_finding, wanted.problems),
        *architecture(host, wanted, facts["architecture"]),
        *processor(wanted, facts),
        *kernel(host, wanted),
        *engine_kind(engine, wanted),
        *engine_network(host, engine, wanted),
        *engine_proxy(engine, wanted, missing),
        *directories(host, wanted),
        *read_only(host, wanted),
        *disk(host, engine, wanted, missing),
        *memory(host, engine, wanted, missing),
        *clock(host, wanted, missing),
        *certificates(host, wanted),
        *ports(host, engine, wanted),
        *registry(wanted, missing),
        *packages(host, engine, wanted),
        *requirements(host, wanted),
        *gpus(host, engine, wanted),
    ]
    return Examination(judge(findings, wanted.ignore), facts, missing)
