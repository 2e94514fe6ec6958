# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of a bundle: what hosts can read is whole at each moment. Real indexes are those of tests/integration."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.package_import import import_packages

SUITE = "trixie"


class PowerCut(BaseException):
    pass


def trusting(command: list[str]) -> tuple[int, str, str]:
    """Stand for apt, which has taken the index."""
    lists = next(Path(word.partition("=")[2]) for word in command if word.startswith("Dir::State::Lists="))
    shutil.copy(lists.parent / "repository" / "Packages", lists / "repository_Packages")
    return 0, "", ""


def bundle(directory: Path, name: str, *packages: str) -> Path:
    """Make a bundle with these packages, which has `name` in its release."""
    place = directory / name / SUITE
    (place / "pool").mkdir(parents=True)
    index = ""
    for package in packages:
        data = f"{package} of {name}".encode()
        (place / "pool" / f"{package}.deb").write_bytes(data)
        index += f"Package: {package}\nFilename: pool/{package}.deb\nSize: {len(data)}\n"
        index += f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (place / "Packages").write_text(index)
    (place / "InRelease").write_text(f"release {name}: {hashlib.sha256(index.encode()).hexdigest()}\n")
    return directory / name


def take(source: Path, mirror: Path) -> bool:
    return import_packages(source, mirror, "key", trusting, write=True)


def served(mirror: Path) -> str:
    """Return the name of the release that hosts read, if all is there that it names."""
    place = mirror / SUITE
    release, index = (place / "InRelease").read_text(), (place / "Packages").read_text()
    assert hashlib.sha256(index.encode()).hexdigest() in release, "apt would refuse the index"
    for paragraph in index.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines())
        assert hashlib.sha256((place / fields["Filename"]).read_bytes()).hexdigest() == fields["SHA256"]
    return release.split()[1].rstrip(":")


def packages(mirror: Path) -> list[str]:
    return sorted(path.name for path in (mirror / SUITE / "pool").iterdir())


def test_a_power_cut_at_any_step_leaves_one_or_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = bundle(tmp_path, "first", "a", "b"), bundle(tmp_path, "second", "a", "c")
    replace, seen = Path.replace, []
    for step in range(20):
        mirror = tmp_path / f"mirror-{step}"
        assert take(first, mirror)
        left = [step]

        def cut(path: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise PowerCut
            left[0] -= 1
            return replace(path, target)

        with monkeypatch.context() as cutting:
            cutting.setattr(Path, "replace", cut)
            try:
                take(second, mirror)
                break
            except PowerCut:
                seen.append(served(mirror))
        assert take(second, mirror)
        assert served(mirror) == "second"
        assert packages(mirror) == ["a.deb", "b.deb", "c.deb"], "a host that has read the index before finds b"
        assert not take(second, mirror)
        assert len(list(mirror.iterdir())) == 2, "the link, and what it leads to"
    assert len(seen) > 3 and set(seen) == {"first"}


def test_what_earlier_versions_made_is_replaced(tmp_path: Path) -> None:
    first, second = bundle(tmp_path, "first", "a"), bundle(tmp_path, "second", "b")
    mirror = tmp_path / "mirror"
    shutil.copytree(first, mirror)
    assert not take(first, mirror)
    assert take(second, mirror)
    assert served(mirror) == "second"
    assert packages(mirror) == ["a.deb", "b.deb"]


def test_a_package_that_is_damaged_is_taken_again(tmp_path: Path) -> None:
    source, mirror = bundle(tmp_path, "first", "a", "b"), tmp_path / "mirror"
    take(source, mirror)
    (mirror / SUITE / "pool" / "a.deb").write_text("")
    assert take(source, mirror)
    assert served(mirror) == "first"
    assert not take(source, mirror)
