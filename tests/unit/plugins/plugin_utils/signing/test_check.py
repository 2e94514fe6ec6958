# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller says of a lock's signatures before a host is touched, and what preflight makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import REFUSE, WARN, inventory_finding
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.check import signature_problems
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key, sign_lock

LOCK: dict[str, Any] = {"serial": 3, "registry": "registry.edgeml.internal:5443", "images": {}, "models": {}}


def trust(**options: Any) -> dict[str, Any]:
    return {"mode": "required", "trusted_keys": [], "lock_signature": "", "signers_needed": 1, **options}


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_signed_lock_is_no_problem(kind: str) -> None:
    key = make_key(kind)
    assert signature_problems(LOCK, trust(trusted_keys=[key.public], lock_signature=sign_lock(LOCK, [key]))) == []


def test_a_lock_that_is_not_signed_refuses() -> None:
    key = make_key()
    keys = [key.public]
    for options, reason in (
        (trust(), "No key is trusted to sign the lock"),
        (trust(trusted_keys=keys), "The lock is not signed"),
        (trust(trusted_keys=keys, lock_signature=sign_lock({**LOCK, "serial": 4}, [key])), "The lock was altered"),
        (trust(trusted_keys=["text"]), "Not a public key"),
        (trust(trusted_keys=keys, lock_signature=sign_lock(LOCK, [key]), signers_needed=2), "More signers are needed"),
    ):
        (problem,) = signature_problems(LOCK, options)
        finding = inventory_finding(problem)
        assert (finding.name, finding.severity) == ("signature", REFUSE)
        assert reason in finding.value
        assert finding.remedy


def test_a_host_that_runs_unsigned_content_is_named() -> None:
    (problem,) = signature_problems(LOCK, trust(mode="ignored"))
    finding = inventory_finding(problem)
    assert (finding.name, finding.severity) == ("unsigned", WARN)
    assert "ignored" in finding.value
