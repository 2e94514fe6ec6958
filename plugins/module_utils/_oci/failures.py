# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How conversations with a registry fail, and which of them are tried again."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import TypeVar

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

ATTEMPTS = 3
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubles with each further one
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})

Result = TypeVar("Result")


class TransientError(FleetError):
    """A failure that another attempt may cure: a lost connection, an overloaded or failing server."""


class UnreachableError(TransientError):
    """Nothing that speaks TLS and HTTP answers at the registry's address."""


class UnknownNameError(UnreachableError):
    """No name service knows the registry's name."""


class UntrustedError(FleetError):
    """The registry's certificate is not that of a trusted authority for this name and time."""


class RefusedError(FleetError):
    """The registry does not let the user in."""


def repeat(action: Callable[[], Result]) -> Result:
    """Return what `action` returns; after a TransientError it is tried again, with a growing pause."""
    pause = FIRST_PAUSE
    for _attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except TransientError:
            time.sleep(pause)
            pause *= 2
    return action()


def broken_off(url: str, seen: object) -> TransientError:
    """Return the error of a transfer that ended too early."""
    return TransientError(
        "The transfer broke off",
        where=url,
        seen=str(seen) or type(seen).__name__,
        remedy="check the network and try again",
    )


def answer_failure(status: int, body: bytes, where: str, username: str = "") -> FleetError:
    """Return the error that an answer of a registry is; `username` is the one that was sent."""
    seen = f"HTTP {status}{_error_text(body)}"
    if status == 401 and username:
        return RefusedError(
            "The registry refused the user name and password",
            where=where,
            seen=f"{seen}, user name {username}",
            remedy="correct the user name or the password; each inventory, a copy too, makes its own password for the "
            "collection's store: run the playbook edgeml.fleet.store, or set edgeml_store_password",
        )
    if status == 401:
        return RefusedError(
            "The registry asks for a user name and a password",
            where=where,
            seen=seen,
            remedy="give username and password",
        )
    if status == 403:
        return RefusedError(
            "The registry does not allow this to the user",
            where=where,
            seen=f"{seen}, user name {username or '(none)'}",
            remedy="give the user the right, or use another one"
            if username
            else "use a user that has the right; of a mirror that asks for certificates, set edgeml_mirror_clients for "
            "this host too, with a certificate of the authority that the mirror trusts",
        )
    if status == 404:
        return FleetError(
            "The registry does not hold this",
            where=where,
            seen=seen,
            remedy="check the name, or publish it first",
        )
    if status in TRANSIENT_STATUS:
        return TransientError(
            "The registry failed to answer the request",
            where=where,
            seen=seen,
            remedy="look into its log (a full disk or damaged storage also lead here), then try again",
        )
    return FleetError(
        "The registry gave an unexpected answer",
        where=where,
        seen=seen,
        remedy="check that the address is that of an OCI registry, and look into its log",
    )


def _error_text(body: bytes) -> str:
    """Return the first error of an OCI error body (distribution specification, "Error codes") as `` CODE message``."""
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        error = json.loads(body)["errors"][0]
        text = f" {error.get('code', '')} {error.get('message', '')}".rstrip()
        return re.sub(r"[^ -~]", "?", text)[:300]
    return ""
