# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From catalogue and runtimes to the work of a publication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.paths import COLLECTION
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.work import publication

REGISTRY = "registry.edgeml.internal:5443"
STORE = "store.edgeml.internal:5000"
RUNTIME = {"name": "runtime", "recipe": "images/runtime.yml", "source_root": "."}
VISION = {"name": "vision", "extends": "runtime", "requirements": "vision.txt", "ports": {"rest": 8010}}
DIGITS = {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "models/digits"}
HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory as an inventory's, with a recipe, locked requirements and a model."""
    (tmp_path / "images").mkdir()
    python = {"version": "3.13", "requirements": "runtime.txt", "target": "/opt/python", "exclude": {"sympy": "unused"}}
    recipe = {
        "base": {"suite": "trixie", "packages": ["libc6"]},
        "python": python,
        "config": {"user": "1", "entrypoint": ["x"]},
    }
    (tmp_path / "images/runtime.yml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "runtime.txt").write_text(f"numpy==2.4.6 {HASH}\nsympy==1.14.0 {HASH}\n")
    (tmp_path / "vision.txt").write_text(f"pillow==13.0.0 {HASH}\nsmall==1.0.0 ; platform_machine == 'x86_64' {HASH}\n")
    (tmp_path / "models/digits/data").mkdir(parents=True)
    return tmp_path


def plan(
    base: Path, *catalogue: dict[str, Any], runtimes: tuple[dict[str, Any], ...] = (RUNTIME, VISION)
) -> dict[str, Any]:
    return publication(
        catalogue,
        runtimes,
        directory=str(base),
        build_directory=str(base / "build"),
        architectures=["amd64", "arm64"],
        registry=REGISTRY,
        store=STORE,
    )


def refused(
    base: Path, *catalogue: dict[str, Any], runtimes: tuple[dict[str, Any], ...] = (RUNTIME, VISION)
) -> list[str]:
    """Return the problems, one a line."""
    with pytest.raises(InventoryError) as caught:
        plan(base, *catalogue, runtimes=runtimes)
    return str(caught.value).splitlines()


def test_paths_begin_at_the_inventory(base: Path) -> None:
    found = plan(base, DIGITS)
    assert found["artifacts"][0]["directory"] == str(base / "models/digits")
    assert found["builds"] == found["sources"] == []
    assert [image["recipe"] for image in found["images"]] == [str(base / "images/runtime.yml")] * 2
    assert found["images"][0]["source_root"] == str(base)
    assert plan(base, DIGITS, runtimes=({"name": "runtime", "recipe": "images/runtime.yml"},))["images"][0][
        "source_root"
    ] == str(base / "images")


def test_files_of_the_collection_are_found_wherever_it_is_installed(base: Path) -> None:
    runtime = {"name": "runtime", "recipe": "edgeml.fleet:runtime/image/image.yml", "source_root": "edgeml.fleet:"}
    vision = {**VISION, "requirements": "edgeml.fleet:requirements/vision.txt"}
    build = {"program": "build.py", "requirements": "edgeml.fleet:requirements/models.txt"}
    model = {**DIGITS, "source": "edgeml.fleet:models/digits", "build": build, "requires": {"python": ["numpy"]}}
    found = plan(base, model, runtimes=(runtime, vision))
    image = found["images"][1]
    assert image["recipe"] == str(COLLECTION / "runtime/image/image.yml")
    assert Path(image["source_root"]) == COLLECTION
    assert image["requirements"] == [str(COLLECTION / "requirements/vision.txt")]
    assert found["builds"][0]["program"] == str(COLLECTION / "models/digits/build.py")
    missing = {**DIGITS, "source": "edgeml.fleet:models/none"}
    assert str(COLLECTION / "models/none") in "".join(refused(base, missing))


def test_a_flavour_adds_to_what_it_extends(base: Path) -> None:
    deeper = {"name": "deeper", "extends": "vision", "requirements": "runtime.txt", "ports": {"rest": 8020}}
    runtime, vision, last = plan(base, runtimes=(RUNTIME, VISION, deeper))["images"]
    assert (runtime["requirements"], runtime["mount_from"]) == ([], [])
    assert (vision["requirements"], vision["mount_from"]) == ([str(base / "vision.txt")], ["edgeml/runtime"])
    assert last["requirements"] == [str(base / "vision.txt"), str(base / "runtime.txt")]
    assert last["mount_from"] == ["edgeml/runtime", "edgeml/vision"]


def test_a_finished_image_is_copied(base: Path) -> None:
    reference = "docker.example.com/server@sha256:" + "1" * 64
    server = {"name": "runtime", "image": reference}
    (image,) = plan(base, runtimes=(server,))["images"]
    assert (image["image"], image["recipe"], image["address"]) == (reference, "", "docker.example.com")
    (problem,) = refused(base, runtimes=(server, VISION))
    assert "cannot add Python packages to a finished image" in problem
    assert "edgeml_runtimes[1].requirements" in problem


@pytest.mark.parametrize(
    ("architecture", "untried"),
    [("arm64", "it is for arm64 alone"), (["arm64"], "it is for arm64 alone"), (["amd64", "arm64"], ""), ("amd64", "")],
)
def test_a_variant_for_the_other_architecture_alone_is_not_tried_here(
    base: Path, monkeypatch: pytest.MonkeyPatch, architecture: str | list[str], untried: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    variants = [{"name": "int8", "file": "model.int8.onnx", "when": {"architecture": architecture}}]
    (base / "models/digits/model.int8.onnx").write_bytes(b"int8")
    (artifact,) = plan(base, DIGITS | {"variants": variants})["artifacts"]
    assert artifact["untried"] == untried


def test_each_variant_is_an_artifact(base: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        (base / "models/digits" / name).touch()
    variants = [
        {"name": "int8", "file": "model.int8.onnx", "when": {"architecture": "arm64"}},
        {"name": "fp32", "file": "model.onnx"},
    ]
    int8, fp32 = plan(base, DIGITS | {"variants": variants})["artifacts"]
    assert int8["form"] == {"name": "int8", "file": "model.int8.onnx", "others": ["model.onnx"]}
    assert (fp32["variant"], fp32["form"]["others"]) == ("fp32", ["model.int8.onnx"])
    (base / "models/digits/model.onnx").unlink()
    (problem,) = refused(base, DIGITS | {"variants": variants})
    assert "The file of variant fp32 is missing" in problem
    (problem,) = refused(base, DIGITS | {"variants": [{"name": "int8"}]})
    assert "A variant has either file or minify" in problem


def test_sources_are_named_by_their_digest(base: Path) -> None:
    url = {"url": "https://models.example.com/a.tar.gz", "sha256": "a" * 64}
    oci = {"oci": "harbor.example.com/a/b@sha256:" + "b" * 64}
    found = plan(base, DIGITS | {"source": url}, DIGITS | {"source": oci, "version": "1.1.0"})
    assert [source["address"] for source in found["sources"]] == ["models.example.com", "harbor.example.com"]
    directories = [str(base / "build/sources" / ("a" * 64)), str(base / "build/sources" / ("b" * 64))]
    assert [source["directory"] for source in found["sources"]] == directories
    assert [artifact["directory"] for artifact in found["artifacts"]] == directories


def other_lock(base: Path, registry: str) -> None:
    digest = "sha256:" + "c" * 64
    entry = {
        "repository": "edgeml/models/digits",
        "digest": digest,
        "index": digest,
        "platforms": {},
        "blob": {"digest": digest, "size": 1},
        "golden_cases": 10,
    }
    variants = {"int8": {**entry, "accuracy": 0.97}, "fp32": entry}
    models = {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": variants}}}
    lock = {"serial": 3, "registry": registry, "images": {}, "models": models}
    (base / "other.lock.yml").write_text(yaml.safe_dump(lock))


@pytest.mark.parametrize(
    ("registry", "address"), [(REGISTRY, STORE), ("elsewhere.example.com:5443", "elsewhere.example.com:5443")]
)
def test_a_model_of_another_lock(base: Path, registry: str, address: str) -> None:
    """One that names the same registry has its content in the same store."""
    other_lock(base, registry)
    model = DIGITS | {"source": {"lock": "other.lock.yml"}, "variants": [{"name": "int8"}]}
    found = plan(base, model)
    reference = f"{address}/edgeml/models/digits@sha256:" + "c" * 64
    assert [source["reference"] for source in found["sources"]] == [reference]
    (artifact,) = found["artifacts"]
    assert artifact["form"] == {"name": "int8", "file": "", "others": []}
    assert artifact["directory"] == found["sources"][0]["directory"]
    assert artifact["accuracy"] == {"value": 0.97}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"name": "digit", "variants": [{"name": "int8"}]},
            ["Model digit is not in the other lock", "did you mean digits"],
        ),
        ({"version": "2.0.0"}, ["Version 2.0.0", "use one of 1.0.0"]),
        ({"platform": "python"}, ["another platform", "use onnxruntime_onnx"]),
        ({}, ["no such variant", "'default'", "use one of fp32, int8"]),
        ({"source": {"lock": "none.lock.yml"}}, ["no such file", "none.lock.yml"]),
        ({"source": {"lock": "vision.txt"}}, ["vision.txt"]),
    ],
)
def test_what_another_lock_does_not_have(base: Path, change: dict[str, Any], words: list[str]) -> None:
    other_lock(base, REGISTRY)
    text = "\n".join(refused(base, DIGITS | {"source": {"lock": "other.lock.yml"}} | change))
    assert [word for word in words if word.replace("'", "") not in text.replace("'", "")] == []


def with_python(*specifiers: str, runtime: str = "runtime") -> dict[str, Any]:
    return DIGITS | {"runtime": runtime, "requires": {"python": list(specifiers)}}


def test_python_packages_that_the_runtime_has(base: Path) -> None:
    plan(base, with_python("numpy>=2", "NumPy==2.4.6"))
    plan(base, with_python("numpy", "Pillow>=12", runtime="vision"))


@pytest.mark.parametrize(
    ("runtime", "specifier", "seen"),
    [
        ("runtime", "numpy<2", "numpy<2; the runtime's locked requirements have numpy 2.4.6 for amd64"),
        ("runtime", "pillow", "have no pillow"),
        ("runtime", "sympy", "have no sympy"),  # locked, and excluded by the recipe
        ("vision", "small", "have no small for arm64"),
        ("runtime", "numpy >> 2", "Not a requirement specifier"),
    ],
)
def test_python_packages_that_the_runtime_lacks(base: Path, runtime: str, specifier: str, seen: str) -> None:
    (problem,) = refused(base, with_python(specifier, runtime=runtime))
    assert seen in problem
    assert "edgeml_catalogue[0].requires.python[0]" in problem
    assert "Not a" in problem or ("model digits" in problem and f"Runtime {runtime}" in problem)


def test_python_packages_of_a_finished_image_are_not_known(base: Path) -> None:
    server = {"name": "runtime", "image": "docker.example.com/server@sha256:" + "1" * 64}
    (problem,) = refused(base, with_python("numpy"), runtimes=(server,))
    assert "Python packages of runtime runtime are not known" in problem


def test_everything_wrong_is_said_at_once(base: Path) -> None:
    problems = refused(
        base,
        with_python("scikit-image"),
        DIGITS | {"version": "1.1.0", "source": "models/digit"},
        DIGITS | {"version": "1.2.0", "build": {"program": "build.py", "requirements": "models.txt"}},
        DIGITS | {"version": "1.3.0", "golden": "golden"},
        runtimes=({**RUNTIME, "recipe": "images/none.yml"},),
    )
    for part in ("images/none.yml", "models/digit.", "build.py", "models.txt", "golden", "runtime are not known"):
        assert any(part in problem for problem in problems), part
    assert "Unknown key" in refused(base, DIGITS | {"sorce": "x"})[0]
    assert "twice" in refused(base, DIGITS, DIGITS)[0]


def test_a_built_model_is_named_after_all_that_it_is_made_of(base: Path) -> None:
    source = base / "models/digits"
    for path in (source / "build.py", source / "data/samples", source.parent / "golden_cases.py"):
        path.write_text("first")
    (base / "models.txt").write_text("numpy==2.4.6 --hash=sha256:0\n")
    model = DIGITS | {"build": {"program": "build.py", "requirements": "models.txt"}}

    def names() -> tuple[str, str]:
        (made,) = plan(base, model)["builds"]
        assert made["directory"] == plan(base, model)["artifacts"][0]["directory"]
        return made["directory"], made["environment"]

    directory, environment = names()
    for path in (source / "build.py", source / "data/samples", source.parent / "golden_cases.py"):
        path.write_text("second")
        changed, same = names()
        assert (changed != directory, same) == (True, environment)
        path.write_text("first")
        assert names() == (directory, environment)
    (source / "build_small.py").write_text("third")
    other = model | {"version": "1.1.0", "build": {"program": "build_small.py", "requirements": "models.txt"}}
    assert len({made["directory"] for made in plan(base, model, other)["builds"]}) == 2
    (base / "models.txt").write_text("numpy==2.4.7 --hash=sha256:0\n")
    assert {directory, environment}.isdisjoint(names())
