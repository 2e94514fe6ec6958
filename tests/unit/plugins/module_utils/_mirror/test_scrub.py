# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import scrub as module
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.scrub import find_damaged, scrub, take_away
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree


def blob(root: Path, data: bytes, written: bytes | None = None) -> Path:
    path = root / "cas" / "sha256" / hashlib.sha256(data).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if written is None else written)
    return path


def test_what_is_not_what_its_name_says_goes(tmp_path: Path) -> None:
    good, flipped, short = blob(tmp_path, b"good"), blob(tmp_path, b"flip", b"flop"), blob(tmp_path, b"short", b"")
    expected = sorted(f"sha256:{path.name}" for path in (flipped, short))
    assert scrub(tmp_path, write=False) == expected
    assert flipped.exists() and short.exists()
    assert scrub(tmp_path, write=True) == expected
    assert good.exists() and not flipped.exists() and not short.exists()
    assert scrub(tmp_path, write=True) == []


def test_a_mirror_that_is_not_there_yet(tmp_path: Path) -> None:
    assert scrub(tmp_path / "none", write=True) == []


def test_what_a_synchronization_has_healed_meanwhile_stays(tmp_path: Path) -> None:
    healed, damaged = blob(tmp_path, b"heal", b"hell"), blob(tmp_path, b"flip", b"flop")
    found = find_damaged(tmp_path)
    assert found == sorted(f"sha256:{path.name}" for path in (healed, damaged))
    healed.write_bytes(b"heal")
    assert take_away(tmp_path, found) == [f"sha256:{damaged.name}"]
    assert healed.exists() and not damaged.exists()


def test_nothing_goes_while_a_synchronization_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = blob(tmp_path, b"flip", b"flop")
    monkeypatch.setattr(module, "_is_intact", lambda path: pytest.fail("it is looked at under the lock"))
    with Tree(tmp_path).locked(), pytest.raises(FleetError, match="under way"):
        take_away(tmp_path, [f"sha256:{damaged.name}"])
    assert damaged.exists()
