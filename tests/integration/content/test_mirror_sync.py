# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""mirror_sync from a real registry to a tree that a real nginx delivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import Summary, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    Link,
    SiteMirror,
    Store,
    publish_image,
    publish_model,
    run_module,
    start_synchronization,
    write_model,
)

LARGE = 6_000_000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_failures, "FIRST_PAUSE", 0.01)


def lock_of(serial: int, images: dict[str, Any], models: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "serial": serial,
        "registry": "registry.edgeml.internal:5443",
        "images": images,
        "models": models or {},
    }


def publish_digits(store: Store, directory: Path) -> dict[str, Any]:
    model = Model("digits", "1.0.0", "onnxruntime_onnx", write_model(directory / "digits"), "model.onnx")
    return publish_model(model, ARCHITECTURES, store.registry(), "edgeml/models/digits")[1]


def model_of(variant: dict[str, Any]) -> dict[str, Any]:
    """Return the lock's models with that variant alone."""
    return {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant}}}}


def sync(mirror: SiteMirror, store: Store, lock: dict[str, Any], address: str = "", keep: int = 2) -> Summary:
    return synchronize(mirror.root, store.registry(address), lock, ARCHITECTURES, keep, write=True)


def parameters(mirror: SiteMirror, store: Store, lock: dict[str, Any]) -> dict[str, Any]:
    # Signatures have tests of their own.
    return {"root": str(mirror.root), "store": store.options(), "lock": lock, "signatures": {"mode": "ignored"}}


def test_check_sync_sync_again_and_drift(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    image = publish_image(store, "edgeml/runtime")
    lock = lock_of(1, {"runtime": image.entry}, model_of(publish_digits(store, tmp_path)))
    options = parameters(mirror, store, lock)

    predicted = run_module("mirror_sync", options, check=True)
    assert predicted["changed"]
    assert mirror.snapshot() == {"current": "None"}

    first = run_module("mirror_sync", options)
    figures = ("generation", "blobs_fetched", "bytes_fetched", "blobs_total", "bytes_total", "removed_blobs")
    assert {key: first[key] for key in figures} == {key: predicted[key] for key in figures}
    # Image: two configurations and two layers. Model: three configurations, one blob, and two for its bill of material.
    assert first["blobs_total"] == first["blobs_fetched"] == 10
    assert mirror.served() == "1"
    assert f"manifests/{image.entry['digest']}.oci-index" in first["diff"]["after"]

    before = mirror.snapshot()
    assert not run_module("mirror_sync", options, check=True)["changed"]
    again = run_module("mirror_sync", options)
    assert not again["changed"]
    assert again["blobs_fetched"] == again["bytes_fetched"] == 0
    assert mirror.snapshot() == before

    # Drift is repaired: a blob that is gone, a manifest that was changed.
    (mirror.root / "cas/sha256" / image.layers["arm64"].removeprefix("sha256:")).unlink()
    manifest = mirror.root / f"current/v2/edgeml/runtime/manifests/{image.entry['digest']}.oci-index"
    manifest.write_bytes(b"{}")
    repaired = run_module("mirror_sync", options)
    assert repaired["changed"]
    assert repaired["blobs_fetched"] == 1
    assert mirror.snapshot() == before


def test_a_flipped_bit_is_found_and_healed(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    image = publish_image(store, "edgeml/runtime")
    options = parameters(mirror, store, lock_of(1, {"runtime": image.entry}))
    run_module("mirror_sync", options)
    path = max((mirror.root / "cas/sha256").iterdir(), key=lambda file: file.stat().st_size)
    right = path.read_bytes()
    path.write_bytes(right[:100] + bytes([right[100] ^ 1]) + right[101:])
    assert not run_module("mirror_sync", options)["changed"], "names and sizes are as they were"
    predicted = run_module("mirror_sync", {**options, "scrub": True}, check=True)
    assert predicted["changed"] and path.read_bytes() != right
    healed = run_module("mirror_sync", {**options, "scrub": True})
    assert healed["damaged_blobs"] == predicted["damaged_blobs"] == [f"sha256:{path.name}"]
    assert (healed["changed"], healed["blobs_fetched"]) == (True, 1)
    assert path.read_bytes() == right
    again = run_module("mirror_sync", {**options, "scrub": True})
    assert (again["changed"], again["damaged_blobs"]) == (False, [])


def test_what_nginx_delivers(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    """The tree is a registry: every manifest and blob of the lock can be had by digest, and nothing else."""
    image = publish_image(store, "edgeml/runtime")
    model = publish_digits(store, tmp_path)
    sync(mirror, store, lock_of(1, {"runtime": image.entry}, model_of(model)))
    registry = mirror.registry()
    registry.ping()

    data, media_type = registry.get_manifest("edgeml/runtime", image.entry["digest"])
    assert media_type == "application/vnd.oci.image.index.v1+json"
    assert registry.manifest_digest("edgeml/runtime", image.entry["digest"]) == sha256_digest(data)
    data, media_type = registry.get_manifest("edgeml/runtime", image.entry["platforms"]["arm64"]["digest"])
    assert media_type == "application/vnd.oci.image.manifest.v1+json"
    for part in (json.loads(data)["config"], *json.loads(data)["layers"]):
        with registry.open_blob("edgeml/runtime", part["digest"]) as stream:
            assert stream.headers["Content-Type"] == "application/octet-stream"
            assert stream.headers["Docker-Content-Digest"] == part["digest"]
            assert sha256_digest(stream.read_all(10_000_000)) == part["digest"]
    with registry.open_blob("edgeml/models/digits", model["blob"]["digest"], offset=1000) as stream:
        assert stream.offset == 1000
        assert len(stream.read_all(10_000_000)) == model["blob"]["size"] - 1000
    registry.get_manifest("edgeml/models/digits", model["digest"])
    registry.get_manifest("edgeml/models/digits", model["index"])
    assert registry._call("GET", "/v2/edgeml/models/digits/tags/list", expect={200})[2] == (
        b'{"name":"edgeml/models/digits","tags":[]}'
    )

    unknown = sha256_digest(b"unknown")
    assert not registry.has_manifest("edgeml/runtime", unknown)
    assert not registry.has_blob("edgeml/runtime", unknown)
    for path in ("/", "/current", "/v2/edgeml/runtime/", "/v2/edgeml/runtime/blobs/", "/v2/../cas/sha256/"):
        assert registry._call("GET", path, expect={404})[2].startswith(b'{"errors":')
    _, headers, body = registry._call("PUT", "/v2/edgeml/runtime/manifests/1", write=True, body=b"{}", expect={405})
    assert (headers["Content-Type"], json.loads(body)["errors"][0]["code"]) == ("application/json", "UNSUPPORTED")


def test_only_the_wanted_architecture_is_copied(store: Store, mirror: SiteMirror) -> None:
    image = publish_image(store, "edgeml/runtime")
    lock = lock_of(1, {"runtime": image.entry})
    assert synchronize(mirror.root, store.registry(), lock, ["arm64"], 2, write=True).blobs_total == 2
    registry = mirror.registry()
    assert registry.has_blob("edgeml/runtime", image.layers["arm64"])
    assert not registry.has_blob("edgeml/runtime", image.layers["amd64"])
    assert not registry.has_manifest("edgeml/runtime", image.entry["platforms"]["amd64"]["digest"])


def test_docker_pulls_the_model_by_digest(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    """A host with nothing but Docker gets the model from the mirror."""
    engine = docker.from_env()
    model = publish_digits(store, tmp_path)
    sync(mirror, store, lock_of(1, {}, model_of(model)))
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    reference = f"{mirror.address}/edgeml/models/digits@{model['platforms'][architecture]['digest']}"
    image = engine.images.pull(reference)
    try:
        assert image.attrs["RootFS"]["Layers"] == [model["blob"]["digest"]]
        container = engine.containers.create(reference, command=["/none"])
        try:
            archive = b"".join(container.get_archive("/model.onnx")[0])
        finally:
            container.remove()
        assert (tmp_path / "digits" / "model.onnx").read_bytes() in archive
    finally:
        engine.images.remove(reference)


def test_nothing_is_asked_of_the_store_when_nothing_is_missing(store: Store, mirror: SiteMirror) -> None:
    lock = lock_of(1, {"runtime": publish_image(store, "edgeml/runtime").entry})
    sync(mirror, store, lock)
    assert not sync(mirror, store, lock, address=f"127.0.0.1:{free_port()}").changed
    # The same content under a higher serial needs no store either.
    higher = sync(mirror, store, lock | {"serial": 2}, address=f"127.0.0.1:{free_port()}")
    assert (higher.changed, higher.blobs_fetched, mirror.served()) == (True, 0, "2")


def test_an_unreachable_store_leaves_what_is_served(store: Store, mirror: SiteMirror) -> None:
    sync(mirror, store, lock_of(1, {"runtime": publish_image(store, "edgeml/runtime").entry}))
    before = mirror.snapshot()
    lock = lock_of(2, {"runtime": publish_image(store, "edgeml/runtime").entry})
    with pytest.raises(FleetError, match="The registry cannot be reached"):
        sync(mirror, store, lock, address=f"127.0.0.1:{free_port()}")
    assert mirror.snapshot() == before


def test_a_corrupted_blob_in_the_store_is_never_served(store: Store, mirror: SiteMirror) -> None:
    sync(mirror, store, lock_of(1, {"runtime": publish_image(store, "edgeml/runtime").entry}))
    image = publish_image(store, "edgeml/damaged")
    stored = store.file_of(image.layers["amd64"])
    content = bytearray(stored.read_bytes())
    content[5000] ^= 1
    stored.write_bytes(content)
    before = mirror.snapshot()

    lock = lock_of(2, {"runtime": image.entry})
    failed = run_module("mirror_sync", parameters(mirror, store, lock), fails=True)
    assert failed["what"] == "A blob is not what its digest says"
    assert failed["where"] == f"{store.address}/edgeml/damaged@{image.layers['amd64']}"
    assert failed["seen"] == sha256_digest(bytes(content))
    assert mirror.served() == "1"
    assert before.items() <= mirror.snapshot().items()
    assert not mirror.registry().has_blob("edgeml/damaged", image.layers["amd64"])
    assert not (mirror.root / "staging" / f"{image.layers['amd64'].removeprefix('sha256:')}.part").exists()

    # A truncated one too.
    stored.write_bytes(content[:-1])
    with pytest.raises(FleetError, match="not what its digest says"):
        sync(mirror, store, lock)

    # Once the store is repaired the next run completes.
    content[5000] ^= 1
    stored.write_bytes(content)
    assert sync(mirror, store, lock).generation == 2
    assert mirror.registry().has_blob("edgeml/damaged", image.layers["amd64"])


def test_a_corrupted_manifest_in_the_store_is_never_served(store: Store, mirror: SiteMirror) -> None:
    image = publish_image(store, "edgeml/damaged")
    stored = store.file_of(image.entry["platforms"]["amd64"]["digest"])
    stored.write_bytes(stored.read_bytes().replace(b'"size":', b'"size": '))
    with pytest.raises(FleetError, match=r"another digest|failed to answer"):
        sync(mirror, store, lock_of(1, {"runtime": image.entry}))
    assert mirror.served() is None


def test_a_link_that_breaks_every_megabyte_wastes_nothing(
    store: Store, mirror: SiteMirror, link: Callable[..., Link]
) -> None:
    image = publish_image(store, "edgeml/large", LARGE)
    line = link(per_connection=1_000_000)
    summary = sync(mirror, store, lock_of(1, {"runtime": image.entry}), line.address)
    assert summary.bytes_fetched == summary.bytes_total
    assert line.connections > 10


def test_an_interrupted_download_is_continued(store: Store, mirror: SiteMirror, link: Callable[..., Link]) -> None:
    lock = lock_of(1, {"runtime": publish_image(store, "edgeml/large", LARGE).entry})
    line = link(in_all=LARGE // 2)
    with pytest.raises(FleetError, match=r"cannot be reached|broke off"):
        sync(mirror, store, lock, line.address)
    assert mirror.served() is None
    kept = sum(path.stat().st_size for path in (mirror.root / "staging").glob("*.part"))
    assert LARGE // 3 < kept < LARGE // 2

    summary = sync(mirror, store, lock)
    fetched_before = sum(path.stat().st_size for path in (mirror.root / "cas/sha256").iterdir())
    assert fetched_before == summary.bytes_total
    assert summary.bytes_fetched <= summary.bytes_total - kept
    assert list((mirror.root / "staging").iterdir()) == []


def test_kill_in_the_middle_and_run_again(store: Store, mirror: SiteMirror, link: Callable[..., Link]) -> None:
    sync(mirror, store, lock_of(1, {"runtime": publish_image(store, "edgeml/runtime").entry}))
    lock = lock_of(2, {"runtime": publish_image(store, "edgeml/large", LARGE).entry})
    before = mirror.snapshot()
    line = link(in_all=LARGE // 2, silent=True)
    process = start_synchronization(parameters(mirror, store, lock) | {"store": store.options(line.address)})
    while sum(path.stat().st_size for path in (mirror.root / "staging").glob("*.part")) <= LARGE // 3:
        assert process.poll() is None
        time.sleep(0.05)

    # While it runs, a second one is refused.
    with pytest.raises(FleetError, match="Another synchronization"):
        sync(mirror, store, lock)

    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mirror.served() == "1"
    assert before.items() <= mirror.snapshot().items()
    kept = sum(path.stat().st_size for path in (mirror.root / "staging").glob("*.part"))
    summary = sync(mirror, store, lock)
    assert (summary.generation, mirror.served()) == (2, "2")
    assert summary.bytes_fetched <= summary.bytes_total - kept


def test_a_damaged_partial_file_is_not_blamed_on_the_store(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    """A power cut can leave blocks that were never written."""
    image = publish_image(store, "edgeml/runtime")
    digest = image.layers["amd64"]
    partial = tmp_path / "blob.part"
    partial.write_bytes(bytes(60_000))
    transferred = fetch_blob(store.registry(), "edgeml/runtime", digest, 100_000, tmp_path / "blob", partial)
    assert sha256_digest((tmp_path / "blob").read_bytes()) == digest
    assert transferred == 40_000 + 100_000
    assert not partial.exists()


def test_a_full_disk_is_said_before_anything_is_copied(store: Store, mirror: SiteMirror, tmp_path: Path) -> None:
    lock = lock_of(1, {"runtime": publish_image(store, "edgeml/large", LARGE).entry})
    options = parameters(mirror, store, lock) | {"root": str(tmp_path)}
    # The small file system vanishes with the process that made it.
    prefix = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    script = f'mount -t tmpfs -o size=4m tmpfs "{tmp_path}" && "$@"; ls -A "{tmp_path}/staging"'
    process = start_synchronization(options, [*prefix, "sh", "-c", script, "sh"], stdout=subprocess.PIPE)
    output = process.communicate()[0].decode()
    assert "The disk is full" in output
    assert "12000" in output.split("bytes needed")[0]
    assert ".part" not in output


def test_a_disk_that_fills_up_meanwhile_is_said_and_not_kept_full(store: Store, mirror: SiteMirror) -> None:
    sync(mirror, store, lock_of(1, {"runtime": publish_image(store, "edgeml/runtime").entry}))
    lock = lock_of(2, {"runtime": publish_image(store, "edgeml/large", LARGE).entry})
    options = parameters(mirror, store, lock)
    process = start_synchronization(options, ["prlimit", f"--fsize={LARGE // 2}"], stdout=subprocess.PIPE)
    output = process.communicate()[0].decode()
    assert "The disk is full" in output
    assert mirror.served() == "1"
    assert list((mirror.root / "staging").glob("*.part")) == []


def test_an_older_lock_is_refused(store: Store, mirror: SiteMirror) -> None:
    new = publish_image(store, "edgeml/runtime")
    sync(mirror, store, lock_of(5, {"runtime": new.entry}))
    before = mirror.snapshot()
    with pytest.raises(FleetError, match=r"The lock is older.*serial 4 in the lock, 5 on the mirror"):
        sync(mirror, store, lock_of(4, {"runtime": publish_image(store, "edgeml/runtime").entry}))
    assert mirror.snapshot() == before


def test_other_content_under_the_same_serial_replaces_it(store: Store, mirror: SiteMirror) -> None:
    first = publish_image(store, "edgeml/runtime")
    second = publish_image(store, "edgeml/runtime")
    sync(mirror, store, lock_of(1, {"runtime": first.entry}))
    summary = sync(mirror, store, lock_of(1, {"runtime": second.entry}))
    assert (summary.changed, mirror.served()) == (True, "1")
    assert [path.name for path in (mirror.root / "generations").iterdir()] == ["1"]
    registry = mirror.registry()
    assert registry.has_manifest("edgeml/runtime", second.entry["digest"])
    assert not registry.has_manifest("edgeml/runtime", first.entry["digest"])
    assert not registry.has_blob("edgeml/runtime", first.layers["amd64"])


def test_what_no_kept_generation_needs_is_removed(store: Store, mirror: SiteMirror) -> None:
    images = [publish_image(store, "edgeml/runtime") for _ in range(3)]
    for serial, image in enumerate(images, start=1):
        summary = sync(mirror, store, lock_of(serial, {"runtime": image.entry}))
        assert summary.removed_blobs == (4 if serial == 3 else 0)
    assert sorted(path.name for path in (mirror.root / "generations").iterdir()) == ["2", "3"]
    registry = mirror.registry()
    held = [registry.has_blob("edgeml/runtime", image.layers["amd64"]) for image in images]
    assert held == [False, True, True]

    summary = sync(mirror, store, lock_of(3, {"runtime": images[2].entry}), keep=1)
    assert (summary.changed, summary.removed_blobs) == (True, 4)
    assert [path.name for path in (mirror.root / "generations").iterdir()] == ["3"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda entry: entry["platforms"].pop("arm64"), "no image for an architecture of this site"),
        (lambda entry: entry["platforms"]["arm64"].update(digest="sha256:" + 64 * "0"), "image index disagree"),
        (lambda entry: entry.update(digest="latest"), "Not a SHA-256 digest"),
        (lambda entry: entry.update(repository="../../etc"), "Not a repository name"),
        (lambda entry: entry.pop("platforms"), "Malformed content"),
        (lambda entry: entry.update(digest=entry["platforms"]["amd64"]["digest"]), "something else under this digest"),
        (lambda entry: entry.update(digest="sha256:" + 64 * "0"), "does not hold this"),
    ],
)
def test_a_lock_that_does_not_hold_together_is_refused(
    store: Store, mirror: SiteMirror, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    entry = publish_image(store, "edgeml/runtime").entry
    change(entry)
    with pytest.raises(FleetError, match=expected):
        sync(mirror, store, lock_of(1, {"runtime": entry}))
    assert mirror.served() is None
