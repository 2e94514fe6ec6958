# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates in files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import trustme
from ansible_collections.edgeml.fleet.plugins.plugin_utils.credentials import certificate, htpasswd


def test_htpasswd_changes_only_with_user_or_password() -> None:
    first = htpasswd("edgeml", "one")
    assert first.startswith("edgeml:$2b$")
    assert htpasswd("edgeml", "one", first) == first
    assert htpasswd("edgeml", "two", first) != first
    assert not htpasswd("other", "one", first).startswith("edgeml:")
    assert htpasswd("edgeml", "one", "edgeml:plain").startswith("edgeml:$2b$")


def test_htpasswd_replaces_a_hash_that_takes_a_registry_long() -> None:
    slow = "edgeml:$2b$10$MHbc3ydgLzSvCqHcW20OK.fDrYjW9YJWyUhrTvdlNyGOmrpzCItUi\n"
    assert htpasswd("edgeml", "one", slow).startswith("edgeml:$2b$05$")


def test_validity_of_a_certificate(tmp_path: Path) -> None:
    end = datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
    path = tmp_path / "server.crt"
    path.write_bytes(trustme.CA().issue_cert("berlin-1", not_after=end).cert_chain_pems[0].bytes())
    found = certificate(str(path))
    assert found["not_after"] == end.timestamp()
    assert found["not_before"] < found["not_after"]


def test_a_certificate_that_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    assert certificate(str(tmp_path / "none.crt"))["error"] == "No such file or directory"
    (tmp_path / "bad.crt").write_text("nothing")
    assert "PEM" in certificate(str(tmp_path / "bad.crt"))["error"]
