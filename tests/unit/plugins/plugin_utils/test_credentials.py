# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates in files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from ansible_collections.edgeml.fleet.plugins.plugin_utils.credentials import (
    certificate,
    certificate_problems,
    htpasswd,
)


def test_htpasswd_changes_only_with_user_or_password() -> None:
    first = htpasswd({"edgeml": "one"})
    assert first.startswith("edgeml:$2b$")
    assert htpasswd({"edgeml": "one"}, first) == first
    assert htpasswd({"edgeml": "two"}, first) != first
    assert not htpasswd({"other": "one"}, first).startswith("edgeml:")
    assert htpasswd({"edgeml": "one"}, "edgeml:plain").startswith("edgeml:$2b$")


def test_rotating_one_account_leaves_the_others_as_they_are() -> None:
    first = htpasswd({"berlin": "one", "paris": "two", "gone": "three"})
    second = htpasswd({"berlin": "new", "paris": "two"}, first)
    assert second.splitlines()[1] == first.splitlines()[1]
    assert second.splitlines()[0] != first.splitlines()[0]
    assert "gone" not in second
    assert htpasswd({"berlin": "new", "paris": "two"}, second) == second


def test_htpasswd_replaces_a_hash_that_takes_a_registry_long() -> None:
    slow = "edgeml:$2b$10$MHbc3ydgLzSvCqHcW20OK.fDrYjW9YJWyUhrTvdlNyGOmrpzCItUi\n"
    assert htpasswd({"edgeml": "one"}, slow).startswith("edgeml:$2b$05$")


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


@pytest.mark.parametrize(
    ("carried", "asked", "fits"),
    [
        ("this-machine", "this-machine", True),
        ("this-machine", "this_machine", False),
        ("*.berlin.example", "camera-7.berlin.example", True),
        ("*.berlin.example", "berlin.example", False),
        ("camera-7", "CAMERA-7", True),
        ("2001:db8::5", "2001:DB8:0::5", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_a_certificate_is_for_the_name_that_clients_ask_for(
    tmp_path: Path, carried: str, asked: str, fits: bool
) -> None:
    issued = trustme.CA().issue_cert(carried)
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "server.crt"))
    issued.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    problems = certificate_problems(str(tmp_path / "server.crt"), str(tmp_path / "server.key"), asked)
    assert [problem["what"] for problem in problems] == (
        [] if fits else ["The runtime's certificate is for other names than its clients ask for"]
    )
    assert all("inference_runtime_server_name" in problem["remedy"] for problem in problems)


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.issue_cert("camera-7").cert_chain_pems[0].write_to_path(str(tmp_path / "server.crt"))
    ca.issue_cert("camera-7").private_key_pem.write_to_path(str(tmp_path / "server.key"))

    def what(key: str) -> list[str]:
        return [p["what"] for p in certificate_problems(str(tmp_path / "server.crt"), str(tmp_path / key), "camera-7")]

    assert what("server.key") == ["The key is not that of the certificate"]
    assert what("none.key") == what("server.crt") == ["The certificate's key cannot be read"]
    assert certificate_problems(str(tmp_path / "none.crt"), "", "camera-7") == [], "told by certificate"
