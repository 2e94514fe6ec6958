# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What mirror_sync refuses before it asks the store, and how it puts an interrupted switch right."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import sync as sync_module
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server

Serve = Callable[[Callable[[Request], Answer]], Server]


def image(text: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the content of an amd64 image and its entry of the lock."""
    layer = text.encode()
    config = canonical_json({"architecture": "amd64", "os": "linux", "text": text})
    manifest = canonical_json(
        {
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor(IMAGE_CONFIG, config),
            "layers": [descriptor(LAYER_TAR, layer)],
        }
    )
    index = canonical_json({"mediaType": IMAGE_INDEX, "manifests": [descriptor(IMAGE_MANIFEST, manifest)]})
    content = {sha256_digest(data): data for data in (layer, config, manifest, index)}
    entry = {
        "repository": "edgeml/a",
        "digest": sha256_digest(index),
        "platforms": {"amd64": {"digest": sha256_digest(manifest), "size": 1}},
    }
    return content, entry


def plan(server: Server, root: Path, lock: dict[str, Any], *, keep: int = 2, write: bool) -> dict[str, Any]:
    return synchronize(root, server.registry(), lock, ["amd64"], keep, write=write).plan()


def sync(server: Server, root: Path, lock: dict[str, Any], *, keep: int = 2, write: bool = True) -> bool:
    return bool(plan(server, root, lock, keep=keep, write=write)["action"] == "sync")


def lock_of(serial: object, entry: dict[str, Any]) -> dict[str, Any]:
    return {"serial": serial, "images": {"runtime": entry}, "models": {}}


def deliverer(content: dict[str, bytes]) -> Callable[[Request], Answer]:
    return lambda request: Answer(200, content[request.path.rpartition("/")[2]])


@pytest.mark.parametrize(
    "lock",
    [
        {},
        {"serial": "3", "images": {}, "models": {}},
        {"serial": 0, "images": {}, "models": {}},
        {"serial": True, "images": {}, "models": {}},
        {"serial": 1, "models": {}},
        {"serial": 1, "images": {}, "models": []},
        {"serial": 1, "images": {"runtime": "latest"}, "models": {}},
        {"serial": 1, "images": {}, "models": {"digits": "1.0.0"}},
        {"serial": 1, "images": {}, "models": {"digits": {"1.0.0": {"variants": []}}}},
        {"serial": 1, "images": {}, "models": {"digits": {"1.0.0": {"variants": {"int8": "sha256"}}}}},
    ],
)
def test_a_malformed_lock(serve: Serve, tmp_path: Path, lock: dict[str, Any]) -> None:
    server = serve(lambda _: Answer(404))
    with pytest.raises(FleetError, match=r"Malformed content at fleet\.lock\.yml"):
        sync(server, tmp_path, lock)
    assert server.requests == []


def test_at_least_the_served_generation_is_kept(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="keep_generations"):
        sync(serve(lambda _: Answer(404)), tmp_path, {}, keep=0)


def test_a_scrub_that_holds_the_tree_for_a_moment_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    with Tree(tmp_path).locked(), ThreadPoolExecutor(1) as pool:
        done = pool.submit(sync, serve(deliverer(content)), tmp_path, lock_of(1, entry))
        wait([done], timeout=0.3)
        (tmp_path / "lock").unlink()  # as good as letting it go
        assert done.result(timeout=30)


def test_a_second_synchronization_is_refused(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "LOCK_SECONDS", 0.0)
    content, entry = image("a")
    server = serve(deliverer(content))
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FleetError, match="Another synchronization"):
            sync(server, tmp_path, lock_of(1, entry))
    assert sync(server, tmp_path, lock_of(1, entry))


def test_check_mode_writes_nothing(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    root = tmp_path / "none"
    assert sync(serve(deliverer(content)), root, lock_of(1, entry), write=False)
    assert not root.exists()


def test_the_plan_is_what_is_then_done(serve: Serve, tmp_path: Path) -> None:
    """Each blob counts once, without what an interrupted run left."""
    first, second = image("a"), image("a longer layer")
    server = serve(deliverer(first[0] | second[0]))
    sync(server, tmp_path, lock_of(1, first[1]))
    lock = {
        "serial": 2,
        "images": dict.fromkeys(("runtime", "same"), second[1]) | {"old": first[1]},
        "models": {},
    }
    (tmp_path / "staging" / f"{hashlib.sha256(b'a longer layer').hexdigest()}.part").write_bytes(b"a longer")
    predicted = plan(server, tmp_path, lock, write=False)
    blobs = [data for data in second[0].values() if b'"mediaType"' not in data]
    assert predicted == {
        "action": "sync",
        "generation": {"before": 1, "after": 2},
        "blobs": 2,
        "bytes": sum(map(len, blobs)) - len(b"a longer"),
        "removed_blobs": 0,
        "bill": {"seconds": None, "days": None, "mbit": None, "hours": []},
    }
    asked = len(server.requests)
    done = plan(server, tmp_path, lock, write=True)
    assert done["bytes"] == predicted["bytes"] + len(b"a longer")  # this server knows no Range
    assert {**done, "bytes": 0} == {**predicted, "bytes": 0}
    assert len(server.requests) > asked
    assert plan(server, tmp_path, lock, write=False) == {
        **predicted, "action": "none", "generation": {"before": 2, "after": 2}, "blobs": 0, "bytes": 0,
        "bill": {**predicted["bill"], "days": 0},
    }  # fmt: skip


def test_a_manifest_that_is_not_json(serve: Serve, tmp_path: Path) -> None:
    _, entry = image("a")
    entry["digest"] = sha256_digest(b"<html>")
    with pytest.raises(FleetError, match="not JSON"):
        sync(serve(lambda _: Answer(200, b"<html>")), tmp_path, lock_of(1, entry))


@pytest.mark.parametrize("left", ["at the interim name", "with the final name written"])
def test_an_interrupted_replacement_is_put_right(serve: Serve, tmp_path: Path, left: str) -> None:
    """Replacing the served serial goes over an interim directory; a kill can leave `current` there."""
    content, entry = image("a")
    server = serve(deliverer(content))
    sync(server, tmp_path, lock_of(1, entry))
    generations = tmp_path / "generations"
    (generations / "1").rename(generations / "1.new")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("generations/1.new")
    if left == "with the final name written":
        (generations / "1").mkdir()
    assert sync(server, tmp_path, lock_of(1, entry))
    assert (tmp_path / "current").readlink() == Path("generations/1")
    assert (tmp_path / f"current/v2/edgeml/a/manifests/{entry['digest']}.oci-index").is_file()
    assert [path.name for path in generations.iterdir()] == ["1"]
    assert not sync(server, tmp_path, lock_of(1, entry))


def test_a_served_generation_is_never_removed(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = image("a"), image("b")
    server = serve(deliverer(first[0] | second[0]))
    sync(server, tmp_path, lock_of(1, first[1]))
    removed = []
    remove = Tree._remove_generation

    def checked(tree: Tree, path: Path) -> None:
        assert path.resolve() != tree.current.resolve(strict=True)
        removed.append(path.name)
        remove(tree, path)

    monkeypatch.setattr(Tree, "_remove_generation", checked)
    assert sync(server, tmp_path, lock_of(1, second[1]))
    assert "1" in removed


def test_a_damaged_older_generation_is_not_kept(serve: Serve, tmp_path: Path) -> None:
    first, second = image("a"), image("b")
    server = serve(deliverer(first[0] | second[0]))
    sync(server, tmp_path, lock_of(1, first[1]))
    digest = first[1]["platforms"]["amd64"]["digest"]
    (tmp_path / f"generations/1/v2/edgeml/a/manifests/{digest}.oci-manifest").write_text("damaged")
    sync(server, tmp_path, lock_of(2, second[1]))
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["2"]
    assert sorted(path.name for path in (tmp_path / "cas/sha256").iterdir()) == sorted(
        digest.removeprefix("sha256:") for digest in (sha256_digest(b"b"), _config_digest(second[0]))
    )


def _config_digest(content: dict[str, bytes]) -> str:
    (found,) = [digest for digest, data in content.items() if b'"text"' in data and json.loads(data).get("text")]
    return found
