# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the private authority makes is accepted by Python's and OpenSSL's strictest checks, and made once."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.certificates import PrivateAuthority, Validity
from ansible_collections.edgeml.fleet.plugins.plugin_utils.credentials import client_certificate_problems
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

VALIDITY = Validity("20200101000000Z", "20591231235959Z")
NAMES = ["DNS:camera-1.example.org", "IP:192.0.2.7", "IP:2001:db8::7"]


@pytest.fixture
def authority(tmp_path: Path) -> PrivateAuthority:
    return PrivateAuthority(tmp_path / "pki", "Example Ltd, edge devices", VALIDITY)


def certificate(authority: PrivateAuthority, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((authority.directory / f"{name}.crt").read_bytes())


def certify(
    authority: PrivateAuthority,
    host: str = "camera-1",
    names: list[str] = NAMES,
    check: bool = False,
    client: bool = False,
) -> bool:
    return bool(authority.certify(host, f"{host}.example.org", names, check_mode=check, client=client)["changed"])


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_accepts_what_is_made(authority: PrivateAuthority, purpose: str) -> None:
    assert certify(authority, client=True)
    here = str(authority.directory)
    asked = ["-verify_hostname", "camera-1.example.org", "-purpose", purpose]
    command = ["openssl", "verify", "-x509_strict", "-CAfile", f"{here}/ca.crt", *asked, f"{here}/camera-1.crt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_profile(authority: PrivateAuthority) -> None:
    certify(authority)
    root, host = certificate(authority, "ca"), certificate(authority, "camera-1")
    assert root.subject.rfc4514_string() == "CN=Example Ltd\\, edge devices"
    assert host.subject.rfc4514_string() == "CN=camera-1.example.org"
    assert (host.not_valid_before_utc.year, host.not_valid_after_utc.year) == (2020, 2059)
    assert isinstance(host.public_key(), EllipticCurvePublicKey)
    names = host.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["camera-1.example.org", "192.0.2.7", "2001:db8::7"]
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in authority.directory.glob("*.*")}
    assert (modes[".key"], modes[".crt"]) == (0o600, 0o644)
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700


def test_a_certificate_that_cannot_be_presented_is_made_anew_where_it_has_to_be(authority: PrivateAuthority) -> None:
    certify(authority)
    pair = [str(authority.directory / f"camera-1.{suffix}") for suffix in ("crt", "key")]
    (problem,) = client_certificate_problems(*pair)
    assert "edgeml.fleet.certificates" in problem["remedy"] and problem["where"] == pair[0]
    assert not certify(authority)
    assert certify(authority, check=True, client=True)
    assert certify(authority, client=True)
    assert not certify(authority, client=True)
    assert not certify(authority)
    assert client_certificate_problems(*pair) == []

    certify(authority, "camera-2")
    (problem,) = client_certificate_problems(pair[0], str(authority.directory / "camera-2.key"))
    assert "edgeml_mirror_client_key_file" in problem["remedy"]
    (problem,) = client_certificate_problems(pair[0], "/none")
    assert problem["seen"] == "No such file or directory"


def test_what_is_current_stays(authority: PrivateAuthority) -> None:
    certify(authority)
    before = {path: path.read_bytes() for path in authority.directory.iterdir()}
    assert not certify(authority, names=[*reversed(NAMES)])
    assert {path: path.read_bytes() for path in authority.directory.iterdir()} == before


@pytest.mark.parametrize("lost", ["camera-1.crt", "camera-1.names", "ca.crt", "ca.key"])
def test_what_is_lost_is_made_anew_and_keys_stay(authority: PrivateAuthority, lost: str) -> None:
    certify(authority)
    key = (authority.directory / "camera-1.key").read_bytes()
    (authority.directory / lost).unlink()
    assert certify(authority)
    assert (authority.directory / "camera-1.key").read_bytes() == key
    assert not certify(authority)
    certificate(authority, "camera-1").verify_directly_issued_by(certificate(authority, "ca"))


def test_another_name_needs_another_certificate(authority: PrivateAuthority) -> None:
    certify(authority)
    root = certificate(authority, "ca")
    assert certify(authority, names=["DNS:camera-9"])
    assert certificate(authority, "ca") == root


def test_a_name_longer_than_a_common_name(authority: PrivateAuthority) -> None:
    certify(authority, host="h" * 80, names=["DNS:" + "h" * 60])
    assert certificate(authority, "h" * 80).subject.rfc4514_string() == "CN=" + "h" * 64


def test_check_mode_makes_nothing(authority: PrivateAuthority) -> None:
    told = authority.certify("camera-1", "camera-1", NAMES, check_mode=True)
    assert told["changed"]
    assert "ca.crt" in told["msg"]
    assert "camera-1.crt for DNS:camera-1.example.org, IP:192.0.2.7, IP:2001:db8::7" in told["msg"]
    assert not authority.directory.exists()


def test_hosts_at_the_same_time_have_one_authority(authority: PrivateAuthority) -> None:
    hosts = [f"camera-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda host: certify(authority, host), hosts))
    assert not any(certify(authority, host) for host in hosts)


@pytest.mark.parametrize(
    ("names", "validity", "where", "seen"),
    [
        (["camera-1"], VALIDITY, "private_ca_certificate_names", "camera-1, without its kind"),
        (["IP:camera-1"], VALIDITY, "private_ca_certificate_names", "IP:camera-1"),
        (["DNS:kamera-ä"], VALIDITY, "private_ca_certificate_names", "DNS:kamera-ä"),
        (NAMES, Validity("2020-01-01", "20591231235959Z"), "private_ca_not_before", "2020-01-01"),
        (NAMES, Validity("20590101000000Z", "20200101000000Z"), "private_ca_not_after", "20200101000000Z"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, names: list[str], validity: Validity, where: str, seen: str) -> None:
    with pytest.raises(FleetError) as caught:
        PrivateAuthority(tmp_path, "authority", validity).certify("camera-1", "camera-1", names, check_mode=False)
    assert (caught.value.where, caught.value.seen.partition(", private_ca")[0]) == (where, seen)
    assert not list(tmp_path.glob("*.crt"))


def test_a_key_that_is_none_is_named(authority: PrivateAuthority) -> None:
    authority.directory.mkdir()
    (authority.directory / "camera-1.key").write_text("hello")
    with pytest.raises(FleetError, match=r"camera-1\.key"):
        certify(authority)
    assert (authority.directory / "camera-1.key").read_text() == "hello"
