# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The direction of knowledge: transports know codecs, codecs know no transport, the engine knows neither."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "edgeml_runtime"
FORBIDDEN = {
    "engine": ("edgeml_runtime.codecs", "edgeml_runtime.transports", "grpc", "httptools", "orjson", "google", "paho"),
    "codecs": ("edgeml_runtime.transports", "edgeml_runtime.engine", "grpc", "httptools", "onnxruntime", "paho"),
    "transports": ("onnxruntime", "numpy", "google"),
    "client": ("edgeml_runtime.transports", "edgeml_runtime.engine", "onnxruntime", "httptools", "paho"),
}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def reaches(module: str, forbidden: str) -> bool:
    return module == forbidden or module.startswith(forbidden + ".")


@pytest.mark.parametrize("layer", sorted(FORBIDDEN))
def test_layer(layer: str) -> None:
    files = [file for file in (PACKAGE / layer).rglob("*.py") if not file.name.endswith("_pb2.py")]
    assert len(files) > 2
    for file in files:
        for module in imports(file):
            for forbidden in FORBIDDEN[layer]:
                assert not reaches(module, forbidden), f"{file.name} imports {module}"


@pytest.mark.parametrize("layer", ["engine", "codecs", "transports"])
def test_the_server_knows_no_client(layer: str) -> None:
    for file in (PACKAGE / layer).rglob("*.py"):
        assert not [name for name in imports(file) if reaches(name, "edgeml_runtime.client")], file.name


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("grpc", {"client/grpc.py"}),
        ("paho", {f"transports/mqtt/{name}.py" for name in ("service", "connection", "client")}),
    ],
)
def test_a_library_is_known_in_one_place(library: str, files: set[str]) -> None:
    knowing = {file for file in PACKAGE.rglob("*.py") if any(reaches(name, library) for name in imports(file))}
    assert {str(file.relative_to(PACKAGE)) for file in knowing} == files


def test_declared_dependencies_are_what_is_imported() -> None:
    """Beside the standard library, exactly the packages that pyproject.toml names."""
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    packages = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    used = {name.partition(".")[0] for file in PACKAGE.rglob("*.py") for name in imports(file)}
    used -= sys.stdlib_module_names | {"edgeml_runtime"}
    assert [name for name in used if not declared & packages[name]] == []
    assert declared <= {package for name in used for package in packages[name]}
