# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's source of packages is its mirror while the inventory says so, and nothing of its own is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.package_source import (
    SETTINGS,
    SOURCES,
    PackageSource,
    apply,
)

KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n-----END PGP PUBLIC KEY BLOCK-----\n"
SOURCE = PackageSource("registry.edgeml.internal:5443", "/var/lib/edgeml/mirror/packages", KEY, "/etc/ca.crt")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A bare Debian 13 with a source of its own."""
    for name, text in {
        "etc/os-release": "ID=debian\nVERSION_ID=13\nVERSION_CODENAME=trixie\n",
        "usr/bin/apt-get": "",
        "etc/apt/sources.list": "deb http://192.0.2.1/debian trixie main\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def files(host: Path) -> dict[str, str]:
    return {path.relative_to(host).as_posix(): path.read_text() for path in host.rglob("*") if path.is_file()}


def test_it_is_written_once_and_goes_again(host: Path) -> None:
    before = files(host)
    assert apply(SOURCE, write=False, root=host)
    assert files(host) == before
    assert apply(SOURCE, write=True, root=host)
    assert not apply(SOURCE, write=True, root=host)
    assert files(host)[SOURCES].splitlines()[1:] == [
        "Types: deb",
        "URIs: https://registry.edgeml.internal:5443/packages/trixie/",
        "Suites: ./",
        "Check-Date: no",
        "Signed-By:",
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " mDME",
        " -----END PGP PUBLIC KEY BLOCK-----",
    ]
    assert 'Acquire::https::registry.edgeml.internal::CaInfo "/etc/ca.crt";' in files(host)[SETTINGS]
    assert apply(None, write=True, root=host)
    assert not apply(None, write=True, root=host)
    assert files(host) == before


def test_the_mirror_itself_reads_its_disk(host: Path) -> None:
    (host / "var/lib/edgeml/mirror/packages/trixie").mkdir(parents=True)
    apply(SOURCE, write=True, root=host)
    assert f"URIs: file:{host}/var/lib/edgeml/mirror/packages/trixie/" in files(host)[SOURCES]


def test_a_host_or_key_that_does_not_fit_is_named(host: Path) -> None:
    with pytest.raises(FleetError, match="key by which the packages") as caught:
        apply(replace(SOURCE, key=""), write=True, root=host)
    assert (caught.value.where, caught.value.seen) == ("edgeml_packages_key", "''")
    (host / "etc/os-release").write_text("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=24.04\nVERSION_CODENAME=noble\n")
    with pytest.raises(FleetError, match="packages for Debian only") as caught:
        apply(SOURCE, write=True, root=host)
    assert (caught.value.where, caught.value.seen) == ("edgeml_package_source", "ubuntu, suite noble")
