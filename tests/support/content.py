# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the content tests stand on: a registry, a mirror, and a network between that can be cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._model.artifact import describe_model, push_model
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR_GZIP,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("amd64", "arm64")
PACKAGES = ("docker-registry", "nginx")
UNPRIVILEGED = 65532


def take_built_layers(cache: Path) -> None:
    """Give an empty image cache the layers that this repository's builds have left in build/images, as hard links.

    Where another test builds the same from nothing and compares, this one need not.
    """
    for name in ("layers", "blobs"):
        built = REPOSITORY_ROOT / "build" / "images" / name
        (cache / name).mkdir(parents=True, exist_ok=True)
        for path in built.iterdir() if built.exists() else ():
            with contextlib.suppress(FileNotFoundError):
                os.link(path, cache / name / path.name)


@dataclass
class Authority:
    ca_file: Path
    certificate: Path
    key: Path

    @classmethod
    def made(cls, directory: Path) -> Authority:
        """Make one, and a certificate of this machine's loopback, in files of a directory."""
        ca = trustme.CA()
        server = ca.issue_cert("127.0.0.1", "localhost")
        found = cls(directory / "ca.crt", directory / "server.crt", directory / "server.key")
        ca.cert_pem.write_to_path(str(found.ca_file))
        found.certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        server.private_key_pem.write_to_path(str(found.key))
        return found


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}, exit status {process.poll()}")


@dataclass
class Store:
    """A running registry with TLS and a password."""

    address: str
    ca_file: str
    storage: Path
    username: str = "publisher"
    password: str = "correct horse"

    def registry(self, address: str = "", password: str = "") -> Registry:
        return Registry(address or self.address, self.username, password or self.password, self.ca_file)

    def options(self, address: str = "") -> dict[str, str]:
        return {
            "address": address or self.address,
            "username": self.username,
            "password": self.password,
            "ca_file": self.ca_file,
        }

    def file_of(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


@dataclass
class SiteMirror:
    """A tree, and the address at which nginx delivers it."""

    root: Path
    address: str
    ca_file: str

    def registry(self) -> Registry:
        return Registry(self.address, ca_file=self.ca_file)

    def served(self) -> str | None:
        """Return the name of the generation that is served."""
        link = self.root / "current"
        return link.readlink().name if link.is_symlink() else None

    def snapshot(self) -> dict[str, str]:
        """Return every file of the content with its digest, and where `current` leads."""
        files = {
            path.relative_to(self.root).as_posix(): sha256_digest(path.read_bytes())
            for path in self.root.rglob("*")
            if path.is_file() and not {"agent", "staging", "sync"} & set(path.parts)
        }
        return files | {"current": str(self.served())}


class Link:
    """A network path to the store that ends connections, or falls silent, after a number of bytes.

    `per_connection` limits each of the first `limited` connections, `in_all` their sum.
    """

    def __init__(
        self,
        address: str,
        *,
        per_connection: int = 0,
        limited: int = 1_000_000,
        in_all: int = 0,
        silent: bool = False,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._upstream = (host, int(port))
        self._per_connection = per_connection
        self._limited = limited
        self._in_all = in_all
        self._silent = silent
        self._delivered = 0
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self._open = True
        self.connections = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._open = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while self._open:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._upstream)
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        delivered = 0
        with contextlib.suppress(OSError):
            while block := source.recv(16 << 10):
                delivered += len(block)
                self._delivered += len(block)
                if self._over(delivered):
                    while self._silent and self._open:
                        time.sleep(0.05)
                    break
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _over(self, delivered: int) -> bool:
        return bool(
            (self._per_connection and self.connections <= self._limited and delivered > self._per_connection)
            or (self._in_all and self._delivered > self._in_all)
        )


@dataclass
class Published:
    """An image in the store: its entry of the lock and its layer of each architecture."""

    entry: dict[str, Any]
    layers: dict[str, str]


def push_image(registry: Registry, repository: str, config: bytes, layer: bytes) -> bytes:
    """Push an image of one platform, with one layer; return its manifest."""
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor(IMAGE_CONFIG, config),
            "layers": [descriptor(LAYER_TAR_GZIP, layer)],
        }
    )
    for blob in (layer, config):
        assert registry.push_blob(repository, blob, sha256_digest(blob))
    registry.push_manifest(repository, sha256_digest(manifest), manifest, IMAGE_MANIFEST)
    return manifest


def publish_image(store: Store, repository: str, layer_size: int = 100_000) -> Published:
    """Push an image of two architectures with new random layers."""
    registry = store.registry()
    platforms: dict[str, dict[str, Any]] = {}
    manifests = []
    layers = {}
    for architecture in ARCHITECTURES:
        layer = os.urandom(layer_size)
        rootfs = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}
        config = canonical_json({"architecture": architecture, "os": "linux", "rootfs": rootfs})
        manifest = push_image(registry, repository, config, layer)
        size = len(manifest) + len(config) + len(layer)
        platforms[architecture] = {"digest": sha256_digest(manifest), "size": size}
        layers[architecture] = sha256_digest(layer)
        manifests.append(descriptor(IMAGE_MANIFEST, manifest, platform={"architecture": architecture, "os": "linux"}))
    index = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests})
    registry.push_manifest(repository, sha256_digest(index), index, IMAGE_INDEX)
    return Published({"repository": repository, "digest": sha256_digest(index), "platforms": platforms}, layers)


def publish_model(
    model: Model, architectures: Sequence[str], registry: Registry, repository: str
) -> tuple[bool, dict[str, Any]]:
    """Make the registry hold `model`; return whether anything was sent, and the model's entry of the lock."""
    entry, content = describe_model(model, architectures, repository)
    return push_model(model, entry, content, registry, send=True)[0], entry


def write_model(directory: Path) -> Path:
    """Make a model directory. Nothing here loads the model."""
    (directory / "golden").mkdir(parents=True)
    (directory / "model.onnx").write_bytes(os.urandom(50_000))
    (directory / "labels.txt").write_text("zero\none\n")
    (directory / "golden" / "seven.json").write_text(
        '{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [7]}]}'
    )
    return directory


def run_module(
    name: str,
    arguments: dict[str, Any],
    *,
    check: bool = False,
    fails: bool = False,
    interpreter: str = "/usr/bin/python3",
) -> dict[str, Any]:
    """Run a module of the collection as Ansible does, by default with the system's Python, and return its result."""
    command = [str(Path(sys.executable).parent / "ansible"), "localhost", "--connection", "local", "--diff"]
    command += ["--extra-vars", f"ansible_python_interpreter={interpreter}", "--inventory", "localhost,"]
    command += ["--module-name", f"edgeml.fleet.{name}", "--args", json.dumps(arguments)] + ["--check"] * check
    environment = {**os.environ, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found: dict[str, Any] = json.loads(run.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    assert bool(found.get("failed")) == fails, run.stdout + run.stderr
    return found


SYNCHRONIZE = """
import json, sys
from pathlib import Path
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
options = json.loads(sys.argv[1])
try:
    registry = Registry.from_options(options["store"])
    architectures = options.get("architectures", ["amd64", "arm64"])
    print(synchronize(Path(options["root"]), registry, options["lock"], architectures, 2, write=True))
except FleetError as error:
    print(error)
"""


def start_synchronization(
    options: dict[str, Any], prefix: list[str] | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start what mirror_sync does in a process that can be killed or limited."""
    command = [*(prefix or []), sys.executable, "-c", SYNCHRONIZE, json.dumps(options)]
    return subprocess.Popen(command, stdout=stdout)
