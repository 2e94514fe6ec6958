# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model's tar depends on its content and on nothing else."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.artifact import describe_model
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import (
    Model,
    Variant,
    check_version,
    write_model_tar,
)

# Of the tar below, made once: another Python or another order must not change it.
KNOWN_DIGEST = "a9307790c3d1ea61b86cd0e59338a2926826f076ae5dd1ab1cb215af7b88ce0c"


def make(directory: Path, order: int = 1, mode: int = 0o644, when: int = 1) -> Model:
    directory.mkdir(parents=True)
    files = {
        "model.onnx": b"weights",
        "labels.txt": "Tür\n".encode(),
        "golden/seven.json": b"{}",
        "golden/" + 130 * "x": b"a name longer than a ustar header holds",
        "Größe.txt": b"a name outside of ASCII",
    }
    for name, data in sorted(files.items())[::order]:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        os.utime(path, (when, when))
    return Model("digits", "1.0.0", "onnxruntime_onnx", directory, "model.onnx")


def tar_of(model: Model) -> bytes:
    output = io.BytesIO()
    write_model_tar(model, output)
    return output.getvalue()


def test_the_tar_depends_on_content_only(tmp_path: Path) -> None:
    first = tar_of(make(tmp_path / "a"))
    second = tar_of(make(tmp_path / "elsewhere" / "b", order=-1, mode=0o755, when=1_700_000_000))
    assert first == second
    assert hashlib.sha256(first).hexdigest() == KNOWN_DIGEST


def test_what_the_tar_holds(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(make(tmp_path / "a")))) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {member.name for member in members} >= {"model.json", "model.onnx", "golden", "Größe.txt"}
    assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members} == {
        (0, 0, "", "", 0)
    }
    assert {member.mode for member in members if member.isdir()} == {0o755}
    assert {member.mode for member in members if member.isfile()} == {0o644}


@pytest.mark.parametrize("field", ["name", "version"])
def test_the_description_is_part_of_it(tmp_path: Path, field: str) -> None:
    model = make(tmp_path / "a")
    assert tar_of(replace(model, **{field: "2.0.0"})) != tar_of(model)  # type: ignore[arg-type]


def python_model(directory: Path) -> Model:
    directory.mkdir()
    (directory / "model.py").write_text("def infer(inputs):\n    return inputs\n")
    (directory / "serving.json").write_text("{}")
    return Model("scale", "1.0.0", "python", directory, "model.py")


def test_what_python_caches_is_no_part_of_it(tmp_path: Path) -> None:
    model = python_model(tmp_path / "a")
    before = tar_of(model)
    (model.source / "__pycache__").mkdir()
    (model.source / "__pycache__" / "model.cpython-313.pyc").write_bytes(b"bytecode")
    assert tar_of(model) == before
    with tarfile.open(fileobj=io.BytesIO(before)) as tar:
        assert tar.getnames() == ["model.json", "model.py", "serving.json"]


@pytest.mark.parametrize("platform", ["python", "pipeline"])
def test_what_such_a_platform_needs(tmp_path: Path, platform: str) -> None:
    model = replace(python_model(tmp_path / "a"), platform=platform)
    (model.source / "serving.json").unlink()
    with pytest.raises(FleetError, match="declares its inputs and outputs in a file"):
        tar_of(model)


def test_links_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    (model.source / "link").symlink_to("model.onnx")
    with pytest.raises(FleetError, match="a symbolic link"):
        tar_of(model)


def test_links_to_directories_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    (model.source / "link").symlink_to("golden")
    with pytest.raises(FleetError, match="a symbolic link"):
        tar_of(model)


def test_special_files_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    os.mkfifo(model.source / "pipe")
    with pytest.raises(FleetError, match="a special file") as caught:
        tar_of(model)
    assert caught.value.where == str(model.source / "pipe")


@pytest.mark.parametrize("file", ["none.onnx", "golden", "../a/model.onnx", "model.json", ""])
def test_a_missing_model_file_is_named(tmp_path: Path, file: str) -> None:
    model = replace(make(tmp_path / "a"), file=file)
    with pytest.raises(FleetError, match="lacks the model's file") as caught:
        tar_of(model)
    assert "labels.txt" in caught.value.seen


def test_a_description_of_the_users_own_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    (model.source / "model.json").write_text("{}")
    with pytest.raises(FleetError, match=r"model\.json"):
        tar_of(model)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    Path(os.fsdecode(os.fsencode(model.source) + b"/\xff")).write_text("")
    with pytest.raises(FleetError, match="not UTF-8"):
        tar_of(model)


@pytest.mark.parametrize("version", ["0.0.0", "1.4.0", "10.20.30"])
def test_versions(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", [1, 1.1, None, "1", "1.1", "1.0.0.0", "01.0.0", "v1.0.0", "1.0.0-image", "1.0.0\n"])
def test_what_is_no_version(version: object) -> None:
    with pytest.raises(FleetError, match="quoted text"):
        check_version(version)


def names_in(model: Model) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar_of(model))) as tar:
        return tar.getnames()


def with_variants(directory: Path) -> Model:
    model = make(directory)
    (model.source / "int8").mkdir()
    (model.source / "int8/model.onnx").write_bytes(b"small")
    return model


def test_a_variant_is_the_model_with_one_file_of_several(tmp_path: Path) -> None:
    model = with_variants(tmp_path / "a")
    int8 = replace(model, variant=Variant("int8", "int8/model.onnx", ("model.onnx",)))
    fp32 = replace(model, variant=Variant("fp32", "model.onnx", ("int8/model.onnx",)))
    assert names_in(int8) == names_in(fp32) == names_in(make(tmp_path / "alone"))
    with tarfile.open(fileobj=io.BytesIO(tar_of(int8))) as tar:
        assert tar.extractfile("model.onnx").read() == b"small"  # type: ignore[union-attr]
    assert tar_of(fp32) == tar_of(make(tmp_path / "again")), "as if the other variants did not exist"
    entry, content = describe_model(int8, ["amd64"], "edgeml/models/digits")
    assert set(content.tagged) == {"1.0.0-int8", "1.0.0-int8-image"}
    assert entry["golden_cases"] == 1


def test_a_variant_alone_in_its_directory_keeps_its_files(tmp_path: Path) -> None:
    model = replace(make(tmp_path / "a"), variant=Variant("int8", ""))
    assert tar_of(model) == tar_of(make(tmp_path / "b"))
    assert model.tag == "1.0.0-int8"


def test_a_variant_keeps_the_suffix_of_its_file(tmp_path: Path) -> None:
    model = make(tmp_path / "a")
    (model.source / "small.joblib").write_bytes(b"x")
    foreign = replace(model, platform="sklearn", file="", variant=Variant("small", "small.joblib", ("model.onnx",)))
    assert "model.joblib" in names_in(foreign)
    assert not {"small.joblib", "model.onnx"} & set(names_in(foreign))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant("int4", "model.int4.onnx"), "The file of variant int4 is missing"),
        (Variant("int8", "int8/model.onnx"), "takes a name that another file has"),
    ],
)
def test_variants_that_cannot_be(tmp_path: Path, variant: Variant, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        tar_of(replace(with_variants(tmp_path / "a"), variant=variant))


def test_golden_cases_from_elsewhere(tmp_path: Path) -> None:
    model = python_model(tmp_path / "a")
    golden = tmp_path / "cases"
    golden.mkdir()
    (golden / "one.json").write_text("{}")
    (golden / "notes.txt").write_text("")
    found = replace(model, golden=golden)
    assert names_in(found) == [
        "golden",
        "golden/notes.txt",
        "golden/one.json",
        "model.json",
        "model.py",
        "serving.json",
    ]
    assert describe_model(found, ["amd64"], "a")[0]["golden_cases"] == 1
    (model.source / "golden").mkdir()
    with pytest.raises(FleetError, match="two directories of golden cases"):
        tar_of(found)
    with pytest.raises(FleetError, match="does not exist"):
        describe_model(replace(model, golden=tmp_path / "none"), ["amd64"], "a")


def test_the_platform_of_another_server_names_no_file(tmp_path: Path) -> None:
    model = replace(make(tmp_path / "a"), platform="sklearn", file="")
    with tarfile.open(fileobj=io.BytesIO(tar_of(model))) as tar:
        description = tar.extractfile("model.json").read()  # type: ignore[union-attr]
    assert b'"file"' not in description
