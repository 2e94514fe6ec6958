# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make release` builds, without the images, whose digests tests/integration/image compares."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[3]


def release(output: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/release.py"), str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.slow
def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    key = make_key()
    sums = []
    for name in ("first", "second"):
        done = release(tmp_path / name, "--snapshot", EDGEML_RELEASE_KEY=key.private)
        assert done.returncode == 0, done.stdout + done.stderr
        sums.append(done.stdout)
    assert sums[0] == sums[1]
    output = tmp_path / "first"
    listed = {line.split()[1]: line.split()[0] for line in sums[0].splitlines()}
    assert {name.partition("-")[0] for name in listed} == {"edgeml", "edgeml_runtime", "CHANGELOG.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
    public = serialization.load_pem_public_key(key.public.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = base64.b64decode((output / "SHA256SUMS.sig").read_text())
    public.verify(signature, (output / "SHA256SUMS").read_bytes(), ec.ECDSA(hashes.SHA256()))
    with tarfile.open(next(output.glob("edgeml-fleet-*.tar.gz"))) as archive:
        assert {"MANIFEST.json", "plugins/inventory/placement.py", "runtime/image/image.yml"} <= set(archive.getnames())
    with zipfile.ZipFile(next(output.glob("edgeml_runtime-*.whl"))) as wheel:
        assert "edgeml_runtime/server.py" in wheel.namelist()


def test_a_version_is_released_once(tmp_path: Path) -> None:
    """While fragments wait, the version of the last release is refused."""
    done = release(tmp_path / "out")
    fragments = list((ROOT / "changelogs/fragments").glob("*.yml"))
    if fragments:
        assert done.returncode != 0
        assert "Next: raise the version" in done.stderr
        assert not any((tmp_path / "out").glob("*"))
