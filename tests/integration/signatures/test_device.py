# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device refuses before it asks its engine or its mirror for anything: there is neither here.

tests/integration/server takes a signed release all the way.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import ACCEPTED_LOCK, approve
from ansible_collections.edgeml.fleet.tests.support.content import run_module
from ansible_collections.edgeml.fleet.tests.support.cosign import KeyPair, make_key, sign_lock

REGISTRY = "registry.edgeml.internal:5443"


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def model_entry(letter: str) -> dict[str, Any]:
    return {
        "repository": "edgeml/models/digits",
        "digest": digest("1"),
        "index": digest("2"),
        "platforms": {},
        "blob": {"digest": digest(letter), "size": 10},
        "golden_cases": 0,
    }


def make_lock(serial: int = 4) -> dict[str, Any]:
    versions = {
        version: {"platform": "onnxruntime_onnx", "variants": {"default": model_entry(letter)}}
        for version, letter in (("1.0.0", "b"), ("1.1.0", "c"))
    }
    platforms = {"amd64": {"digest": digest("a"), "size": 1}}
    image = {"repository": "edgeml/runtime", "digest": digest("3"), "platforms": platforms}
    return {"serial": serial, "registry": REGISTRY, "images": {"runtime": image}, "models": {"digits": versions}}


def options_of(root: Path, lock: dict[str, Any], keys: list[KeyPair], signed_by: list[KeyPair]) -> dict[str, Any]:
    """Return all options of runtime_release that matter here, as Ansible gives them."""
    return {
        "root": str(root),
        "image": f"{REGISTRY}/edgeml/runtime@{digest('a')}",
        "models": [
            {
                "name": "digits",
                "version": "1.1.0",
                "variant": "default",
                "repository": "edgeml/models/digits",
                "digest": digest("c"),
                "size": 10,
            }
        ],
        "lock": lock,
        "signatures": {
            "mode": "required",
            "trusted_keys": [key.public for key in keys],
            "lock_signature": sign_lock(lock, signed_by),
            "signers_needed": 1,
            "accept_older_lock": False,
        },
    }


@pytest.fixture
def key() -> KeyPair:
    return make_key()


@pytest.fixture
def options(tmp_path: Path, key: KeyPair) -> dict[str, Any]:
    return options_of(tmp_path / "edgeml", make_lock(), [key], [key])


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_what_a_signed_lock_names_is_approved(tmp_path: Path, kind: str) -> None:
    signer = make_key(kind)
    approve(options_of(tmp_path, make_lock(), [make_key("ed25519"), make_key(), signer], [signer]), check_mode=False)
    assert json.loads((tmp_path / ACCEPTED_LOCK).read_text()) == {"serial": 4}


def test_check_mode_remembers_nothing(options: dict[str, Any]) -> None:
    approve(options, check_mode=True)
    assert not Path(options["root"]).exists()


def unsigned(options: dict[str, Any]) -> None:
    options["signatures"]["lock_signature"] = ""


def no_lock(options: dict[str, Any]) -> None:
    options["lock"] = None


def altered(options: dict[str, Any]) -> None:
    """The release and the lock agree, the signature is that of the lock before."""
    options["image"] = f"{REGISTRY}/edgeml/runtime@{digest('d')}"
    options["lock"]["images"]["runtime"]["platforms"]["amd64"]["digest"] = digest("d")


def altered_serial(options: dict[str, Any]) -> None:
    options["lock"]["serial"] = 5


def wrong_key(options: dict[str, Any]) -> None:
    options["signatures"]["trusted_keys"] = [make_key().public]


def too_few(options: dict[str, Any]) -> None:
    options["signatures"]["trusted_keys"].append(make_key().public)
    options["signatures"]["signers_needed"] = 2


def another_image(options: dict[str, Any]) -> None:
    options["image"] = f"{REGISTRY}/edgeml/runtime@{digest('d')}"


def image_of_another_repository(options: dict[str, Any]) -> None:
    options["image"] = f"{REGISTRY}/edgeml/other@{digest('a')}"


def retagged_model(options: dict[str, Any]) -> None:
    """Version 1.0.0, which the lock names, under the name of 1.1.0."""
    options["models"][0]["digest"] = digest("b")


def unknown_model(options: dict[str, Any]) -> None:
    options["models"][0]["version"] = "2.0.0"


def unknown_variant(options: dict[str, Any]) -> None:
    options["models"][0]["variant"] = "int8"


def not_a_key(options: dict[str, Any]) -> None:
    options["signatures"]["trusted_keys"] = ["ssh-ed25519 AAAA"]


REFUSALS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (unsigned, "The lock is not signed"),
    (no_lock, "No lock came with the release"),
    (altered, "The lock was altered after it was signed"),
    (altered_serial, "The lock was altered after it was signed"),
    (wrong_key, "The lock is signed with a key that is not trusted"),
    (too_few, "Too few signers have signed the lock"),
    (another_image, "The signed lock does not name this image"),
    (image_of_another_repository, "The signed lock does not name this image"),
    (retagged_model, "This model is not the one of this name in the signed lock"),
    (unknown_model, "The signed lock does not name this model"),
    (unknown_variant, "The signed lock does not name this model"),
    (not_a_key, "Not a public key that can verify signatures"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS)
def test_a_device_refuses(options: dict[str, Any], change: Callable[[dict[str, Any]], None], reason: str) -> None:
    change(options)
    with pytest.raises(FleetError) as raised:
        approve(options, check_mode=False)
    assert raised.value.what == reason
    assert raised.value.remedy
    assert not Path(options["root"]).exists()


def test_the_module_refuses_before_it_asks_for_anything(options: dict[str, Any]) -> None:
    """In check mode as in a real run; nobody answers at the registry's address, and no engine runs."""
    unsigned(options)
    for check in (True, False):
        refused = run_module("runtime_release", options, check=check, fails=True)
        assert refused["what"] == "The lock is not signed"
        assert "edgeml_signatures: ignored" in refused["remedy"]
    assert not Path(options["root"]).exists()


def test_an_older_lock_is_refused_unless_it_is_asked_for(tmp_path: Path, key: KeyPair) -> None:
    def attempt(serial: int, **more: Any) -> None:
        options = options_of(tmp_path, make_lock(serial), [key], [key])
        options["signatures"].update(more)
        approve(options, check_mode=False)

    for serial in (4, 4, 7):
        attempt(serial)
    with pytest.raises(FleetError, match=r"older than one .*serial 6 in the lock, 7 accepted"):
        attempt(6)
    assert json.loads((tmp_path / ACCEPTED_LOCK).read_text()) == {"serial": 7}
    attempt(6, accept_older_lock=True)
    attempt(6)


def test_a_damaged_memory_of_locks_is_no_empty_one(options: dict[str, Any]) -> None:
    approve(options, check_mode=False)
    path = Path(options["root"]) / ACCEPTED_LOCK
    path.write_text("")
    with pytest.raises(FleetError, match="which lock this host has accepted"):
        approve(options, check_mode=False)


def test_what_is_ignored_needs_neither_lock_nor_key(options: dict[str, Any]) -> None:
    wrong = copy.deepcopy(options)
    wrong["signatures"].update(mode="ignored", trusted_keys=[])
    wrong["lock"] = None
    approve(wrong, check_mode=False)
    assert not Path(options["root"]).exists()
