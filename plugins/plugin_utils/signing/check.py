# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller sees of a lock's signatures before any host is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import PublicKey
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import check_lock
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import verifying


def signature_problems(lock: Mapping[str, Any], signatures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what stands against a lock, as the option "problems" of host_preflight takes it.

    `signatures` is what the modules mirror_sync and runtime_release take as their option of that name. Each host checks
    again for itself.
    """
    options = native(signatures)
    if options["mode"] == "ignored":
        return [
            {
                "finding": "unsigned",
                "what": "Whatever the lock names runs here, whoever wrote it",
                "where": "edgeml_signatures",
                "seen": "ignored",
                "remedy": "publish with a signing key, and set edgeml_signatures: required",
            }
        ]
    try:
        keys = [
            PublicKey.from_pem(pem, f"edgeml_trusted_keys[{index}]")
            for index, pem in enumerate(options["trusted_keys"])
        ]
        check_lock(
            native(lock),
            options["lock_signature"],
            [key.name for key in keys],
            lambda message, signature: verifying(keys, message, signature),
            int(options["signers_needed"]),
        )
    except FleetError as error:
        return [{**error.as_mapping(), "finding": "signature"}]
    return []
