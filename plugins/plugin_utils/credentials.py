# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates that the controller keeps in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library

try:
    import bcrypt
except ImportError as error:
    _without_bcrypt: ImportError | None = error
else:
    _without_bcrypt = None

# A registry checks the password anew at each request: at cost 10 that was 60 to 100 ms of processor for each blob and
# manifest, and most of what a publication took. 5 is what `htpasswd -B` takes (Apache HTTP Server 2.4) and is 32 times
# faster; what protects the file is its mode, and a password that was drawn at random.
COST = 5


def htpasswd(username: str, password: str, current: str = "") -> str:
    """Return an htpasswd file with one bcrypt line; `current` itself if it admits exactly this user at this cost."""
    if _without_bcrypt:
        raise missing_library(_without_bcrypt)
    name, _separator, hashed = current.strip().partition(":")
    if name == username and "\n" not in current.strip() and f"${COST:02}$" in hashed[:8]:
        try:
            if bcrypt.checkpw(password.encode(), hashed.encode()):
                return current
        except ValueError:  # not a bcrypt hash
            pass
    return f"{username}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(COST)).decode()}\n"


def certificate(path: str) -> dict[str, Any]:
    """Return {"path", "not_before", "not_after"} of a PEM file (seconds since the epoch), or {"path", "error"}."""
    from cryptography import x509  # with ansible-core, but not where ansible-test imports this file

    try:
        found = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except OSError as error:
        return {"path": path, "error": error.strerror or str(error)}
    except ValueError:
        return {"path": path, "error": "this is no certificate in PEM"}
    return {
        "path": path,
        "not_before": found.not_valid_before_utc.timestamp(),
        "not_after": found.not_valid_after_utc.timestamp(),
    }
