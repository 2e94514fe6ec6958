# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Content in a store that is signed, as publish signs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import Summary, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import TrustedKeys
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import Trust
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import sign
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    SiteMirror,
    Store,
    publish_image,
    publish_model,
    write_model,
)
from ansible_collections.edgeml.fleet.tests.support.cosign import KeyPair

REGISTRY = "registry.edgeml.internal:5443"


@dataclass
class Signed:
    """A lock whose content is in the store, signed by `key`."""

    store: Store
    mirror: SiteMirror
    directory: Path
    key: KeyPair
    lock: dict[str, Any]

    def trust(self, *, keys: tuple[KeyPair, ...] = (), text: str | None = None, **options: Any) -> Trust:
        trusted = TrustedKeys([key.public for key in keys or (self.key,)])
        signature = (self.directory / "fleet.lock.yml.sig").read_text() if text is None else text
        return Trust(trusted, signature, **options)

    def sync(self, trust: Trust, lock: dict[str, Any] | None = None, address: str = "") -> Summary:
        registry = self.store.registry(address)
        return synchronize(self.mirror.root, registry, lock or self.lock, ARCHITECTURES, 2, write=True, trust=trust)


def publish(store: Store, directory: Path, serial: int = 1) -> dict[str, Any]:
    """Return a lock over one new image and one new model."""
    model = Model("digits", "1.0.0", "onnxruntime_onnx", write_model(directory / f"digits-{serial}"), "model.onnx")
    variant = publish_model(model, ARCHITECTURES, store.registry(), "edgeml/models/digits")[1]
    models = {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant}}}}
    images = {"runtime": publish_image(store, "edgeml/runtime").entry}
    return {"serial": serial, "registry": REGISTRY, "images": images, "models": models}


def sign_all(store: Store, directory: Path, lock: dict[str, Any], private: str, *, check_mode: bool = False) -> Any:
    """Sign a lock, into ``fleet.lock.yml.sig`` below `directory`, and what it names in the store."""
    options = {"lock": lock, "path": directory / "fleet.lock.yml.sig", "key": private, "registry": store.options()}
    return sign(options, check_mode=check_mode, warn=pytest.fail)
