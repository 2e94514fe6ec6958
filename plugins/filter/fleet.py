# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of edgeml.fleet: each is one function of plugin_utils, and documented in the .yml file of its name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import (
    address,
    address_host,
    address_port,
    alternative_name,
    local_address,
    server_name,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.credentials import (
    certificate,
    certificate_problems,
    client_certificate_problems,
    htpasswd,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.plan import variant_trials
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import oci_architecture
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import (
    locked_catalogue,
    next_lock,
    published_lock,
    read_lock,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.work import publication
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.checks import release_checks
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.demand import mirror_demand, runtime_demand
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.document import host_document
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.models import host_models, placed_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.releases import host_releases
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.requirements import required
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import resolve_release
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.runtime_options import runtime_access
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import digests_in_use, site_content
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.expected import expected_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.measurements import measurements
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.check import signature_problems

FUNCTIONS = (
    address,
    address_host,
    address_port,
    alternative_name,
    certificate,
    certificate_problems,
    client_certificate_problems,
    digests_in_use,
    expected_models,
    host_document,
    host_models,
    host_releases,
    htpasswd,
    local_address,
    locked_catalogue,
    measurements,
    mirror_demand,
    next_lock,
    oci_architecture,
    placed_models,
    publication,
    published_lock,
    read_lock,
    release_checks,
    required,
    resolve_release,
    runtime_access,
    runtime_demand,
    server_name,
    signature_problems,
    site_content,
    variant_trials,
)


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as a filter: its FleetError becomes Ansible's own kind."""

    @functools.wraps(function)
    def filter_(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except FleetError as error:
            raise AnsibleFilterError(str(error)) from None

    return filter_


class FilterModule:
    """Filters of edgeml.fleet."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {function.__name__: _filter(function) for function in FUNCTIONS}
