# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks are read for the image's Python, and wheels become a directory."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import PathPatterns
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import (
    Interpreter,
    LockedRequirement,
    additional_requirements,
    select_requirements,
    unpack_wheels,
)

REPOSITORY_ROOT = Path(__file__).parents[5]
LOCK = """\
# comment
Numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via onnxruntime
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:ba
colorama==0.4 ; sys_platform == 'win32' --hash=sha256:ca
neon==1.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:da
sympy==1.14.0 \\
    --hash=sha256:ea
"""


def selected(
    lock: str, version: str = "3.13.5", architecture: str = "amd64", exclude: tuple[str, ...] = ()
) -> dict[str, str]:
    found = select_requirements(lock, "lock.txt", full_version=version, architecture=architecture, exclude=exclude)
    return {item.name: item.version for item in found}


def test_markers_are_those_of_the_image() -> None:
    assert selected(LOCK) == {"numpy": "2.5.5", "sympy": "1.14.0"}
    assert selected(LOCK, version="3.11.2") == {"numpy": "2.4.6", "sympy": "1.14.0"}
    assert selected(LOCK, architecture="arm64") == {"neon": "1.0", "numpy": "2.5.5", "sympy": "1.14.0"}


def test_all_hashes_are_kept() -> None:
    found = select_requirements(LOCK, "lock.txt", full_version="3.11.2", architecture="amd64", exclude=["SymPy"])
    assert [(item.name, item.hashes) for item in found] == [("numpy", ("sha256:aa", "sha256:ab"))]


def test_the_runtime_lock_is_complete_for_the_image() -> None:
    lock = (REPOSITORY_ROOT / "requirements/runtime.txt").read_text()
    assert {"numpy", "onnxruntime", "grpcio", "uvloop"} <= selected(lock).keys()


@pytest.mark.parametrize(
    "line",
    ["numpy --hash=sha256:aa", "numpy>=2 --hash=sha256:aa", "numpy==2.*  --hash=sha256:aa", "numpy==2.5.5", "-e ."],
)
def test_refuses_what_is_not_locked(line: str) -> None:
    with pytest.raises(FleetError, match="not locked") as raised:
        selected(line + "\n")
    assert raised.value.where == "lock.txt"


def test_refuses_a_distribution_that_applies_twice() -> None:
    with pytest.raises(FleetError, match=r"2\.4\.6 and 2\.5\.5"):
        selected(LOCK.replace(" ; python_full_version < '3.12'", ""))


def test_refuses_to_exclude_what_is_not_there() -> None:
    with pytest.raises(FleetError, match="scipy"):
        selected(LOCK, exclude=("sympy", "scipy"))


def make_wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_wheels_share_one_directory_of_libraries(tmp_path: Path) -> None:
    first = make_wheel(
        tmp_path / "first.whl",
        *("space/one.py", "space/tests/test_one.py", "first.data/platlib/space/native.so", "first.data/scripts/run"),
        *("first.data/", "first.data/headers/one.h", "first.dist-info/METADATA", "first.dist-info/RECORD"),
    )
    second = make_wheel(tmp_path / "second.whl", "space/two.py")
    unpack_wheels([first, second], tmp_path / "target", PathPatterns(["tests", "*.dist-info/RECORD"]))
    files = {
        path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*") if path.is_file()
    }
    assert files == {"space/one.py", "space/two.py", "space/native.so", "first.dist-info/METADATA"}


def test_a_wheel_cannot_write_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="leads out"):
        unpack_wheels([make_wheel(tmp_path / "bad.whl", "../escaped.py")], tmp_path / "target", PathPatterns([]))
    assert not (tmp_path / "escaped.py").exists()


def test_a_base_without_python_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"no Python 3\.13"):
        Interpreter(tmp_path, "3.13")


def test_a_flavour_adds_what_the_layers_below_lack() -> None:
    locked = [
        LockedRequirement("numpy", "2.4.6", ("sha256:aa",)),
        LockedRequirement("pillow", "13.0.0", ("sha256:ba",)),
    ]
    assert additional_requirements(locked, {"numpy": "2.4.6"}, "vision.txt") == locked[1:]
    with pytest.raises(FleetError, match=r"disagree.*vision\.txt.*numpy 2\.4\.6, not 2\.5\.5.*--constraint"):
        additional_requirements(locked, {"numpy": "2.5.5"}, "vision.txt")
