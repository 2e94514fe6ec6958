# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others get from a mirror with programs of their own: skopeo, podman, and curl that goes on with a download."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked, with_libraries
from ansible_collections.edgeml.fleet.tests.support.content import ARCHITECTURES, SiteMirror, Store, publish_image

from .test_mirror_sync import lock_of, model_of, publish_digits, sync

PROGRAMS = (
    *("skopeo", "podman", "conmon", "runc"),
    *("libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1", "libsubid4", "libseccomp2"),
)
REPOSITORY = "edgeml/runtime"


@pytest.fixture(scope="module")
def clients() -> Path:
    return unpacked("registry-clients", PROGRAMS)


@pytest.fixture
def served(store: Store, mirror: SiteMirror) -> dict[str, object]:
    """The entry of an image for both architectures that the mirror has."""
    image = publish_image(store, REPOSITORY)
    sync(mirror, store, lock_of(1, {"runtime": image.entry}))
    return image.entry


def run(programs: Path, directory: Path, *command: str) -> str:
    """Run a program of the packages with a configuration of its own; return what it printed."""
    accepted, settings = directory / "policy.json", directory / "containers.conf"
    accepted.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    settings.write_text(
        f'[engine]\nconmon_path = ["{programs}/usr/bin/conmon"]\nruntime = "runc"\n'
        f'[engine.runtimes]\nrunc = ["{programs}/usr/sbin/runc"]\n'
    )
    environment = {**with_libraries(programs), "CONTAINERS_CONF": str(settings), "XDG_RUNTIME_DIR": str(directory)}
    done = subprocess.run(
        [str(programs / "usr/bin" / command[0]), *command[1:]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def trusted(mirror: SiteMirror, tmp_path: Path) -> Path:
    """A directory of certificates, as these programs take it."""
    directory = tmp_path / "certificates"
    directory.mkdir()
    (directory / "ca.crt").write_text(Path(mirror.ca_file).read_text())
    return directory


def test_skopeo_copies_all_of_an_image(
    clients: Path, mirror: SiteMirror, served: dict[str, str], trusted: Path, tmp_path: Path
) -> None:
    source = f"docker://{mirror.address}/{REPOSITORY}@{served['digest']}"
    options = ("--all", "--preserve-digests", f"--src-cert-dir={trusted}")
    policy = f"--policy={tmp_path / 'policy.json'}"
    run(clients, tmp_path, "skopeo", policy, "copy", "--quiet", *options, source, f"oci:{tmp_path / 'copy'}:a")
    index = json.loads((tmp_path / "copy/index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [served["digest"]]
    seen = json.loads(run(clients, tmp_path, "skopeo", "inspect", f"--cert-dir={trusted}", source))
    assert (seen["Digest"], seen["RepoTags"]) == (served["digest"], [])


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, which podman asks for."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_podman_pulls_a_model(
    architecture: str, clients: Path, store: Store, mirror: SiteMirror, trusted: Path, tmp_path: Path, short: Path
) -> None:
    model = publish_digits(store, tmp_path)
    sync(mirror, store, lock_of(1, {}, model_of(model)))
    podman = ["podman", f"--root={short}/root", f"--runroot={short}/run", "--storage-driver=vfs"]
    pull = ["pull", "--quiet", f"--cert-dir={trusted}", f"--signature-policy={short}/policy.json"]
    reference = f"{mirror.address}/edgeml/models/digits@{model['index']}"
    name = run(clients, short, *podman, *pull, f"--arch={architecture}", reference).strip()
    (image,) = json.loads(run(clients, short, *podman, "image", "inspect", name))
    assert image["Architecture"] == architecture
    assert image["RootFS"]["Layers"] == [model["blob"]["digest"]]


def test_curl_goes_on_with_a_download(mirror: SiteMirror, served: dict[str, str], tmp_path: Path) -> None:
    blob = max((mirror.root / "cas/sha256").iterdir(), key=lambda file: file.stat().st_size)
    target = tmp_path / "blob"
    target.write_bytes(blob.read_bytes()[:100])
    url = f"https://{mirror.address}/v2/{REPOSITORY}/blobs/sha256:{blob.name}"
    command = ["curl", "--silent", "--show-error", "--fail", "--cacert", mirror.ca_file, "--continue-at", "-"]
    assert served
    subprocess.run([*command, "--output", str(target), url], check=True)
    assert target.read_bytes() == blob.read_bytes()
