# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.scrub import scrub


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
