# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a model on the controller's disk, and the tar that they become."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.external_data import external_files
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import write_tar

DESCRIPTION = "model.json"
SERVING = "serving.json"
GOLDEN = "golden"
#: Platforms of the collection's own runtime, and the file that they load when none is named.
DEFAULT_FILES = {"onnxruntime_onnx": "model.onnx", "python": "model.py", "pipeline": SERVING}

_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_VERSION = re.compile(r"(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Variant:
    """One form of a model, such as one of less precision.

    Attributes
    ----------
    name : str
        Ends the tag of the artifact.
    file : str
        The file in the source that becomes ``model.onnx``, or whatever its own suffix is. Empty if the source holds
        this variant alone.
    others : tuple of str
        Files of the other variants, which are left out.
    """

    name: str
    file: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model on the controller's disk.

    Attributes
    ----------
    name, version : str
        As clients ask for them in the Open Inference Protocol; the version has three parts.
    platform : str
        One of DEFAULT_FILES, or what another server takes.
    source : pathlib.Path
        Directory whose whole content becomes the model.
    file : str
        The file that the platform loads; empty if another server finds it by itself.
    variant : Variant or None
        Which of several forms in `source` it is.
    golden : pathlib.Path or None
        Directory that becomes ``golden`` in the model.
    """

    name: str
    version: str
    platform: str
    source: Path
    file: str
    variant: Variant | None = None
    golden: Path | None = None

    @property
    def tag(self) -> str:
        """The tag of the artifact."""
        return f"{self.version}-{self.variant.name}" if self.variant else self.version


def check_version(version: object) -> str:
    """Return a three-part semantic version; raise FleetError for anything else, numbers included."""
    if isinstance(version, str) and _VERSION.fullmatch(version):
        return version
    seen = f"{version!r}" if isinstance(version, str) else f"the number {version!r}"
    raise FleetError(
        "Not a model version",
        where="version",
        seen=seen,
        remedy='give three numbers as quoted text, for example "1.4.0"; YAML reads an unquoted 1.4 as a number',
    )


def write_model_tar(model: Model, output: IO[bytes] | io.RawIOBase) -> None:
    """Write the model's files and its model.json as an uncompressed tar that depends on nothing but their content.

    Entries are sorted and carry no owner and no time; modes are 0644 and 0755. Raises FleetError for anything that is
    not a regular file or directory.
    """
    entries: dict[str, Path | bytes] = dict(model_files(model))
    description = {"name": model.name, "version": model.version, "platform": model.platform}
    if model.file:
        description["file"] = model.file
    if DESCRIPTION in entries:
        raise FleetError(
            "The model directory holds a file that this module writes",
            where=str(model.source / DESCRIPTION),
            remedy="remove it; name, version, platform and file are the module's options",
        )
    found = entries.get(model.file)
    if (model.file or model.platform in DEFAULT_FILES or not entries) and not (
        isinstance(found, Path) and found.is_file()
    ):
        raise FleetError(
            "The model directory lacks the model's file",
            where=str(model.source / model.file),
            seen="the directory holds " + (", ".join(sorted(entries)[:20]) or "nothing"),
            remedy="correct source or file",
        )
    if model.platform in ("python", "pipeline") and SERVING not in entries:
        raise FleetError(
            f"A model of platform {model.platform} declares its inputs and outputs in a file {SERVING}",
            where=str(model.source / SERVING),
            remedy="add it to the model's directory",
        )
    entries[DESCRIPTION] = canonical_json(description)
    write_tar(entries, output)


def model_files(model: Model) -> dict[str, Path]:
    """Return the files and directories that make the model, by their name in it. Raise FleetError."""
    entries = dict(_files(model.source))
    if model.golden:
        if any(PurePosixPath(name).parts[0] == GOLDEN for name in entries):
            raise FleetError(
                "The model has two directories of golden cases",
                where=str(model.source / GOLDEN),
                seen=f"the other one is {model.golden}",
                remedy="remove one of them",
            )
        entries |= {GOLDEN: model.golden, **{f"{GOLDEN}/{name}": path for name, path in _files(model.golden)}}
    if model.variant and model.variant.file:
        return _of_variant(entries, model.variant, model.source)
    _weights(entries, model.file, model.source)
    return entries


def _of_variant(entries: Mapping[str, Path], variant: Variant, source: Path) -> dict[str, Path]:
    """Return the files without those of other variants, and the variant's own under its common name."""
    own = entries.get(variant.file)
    if own is None or not own.is_file():
        raise FleetError(
            f"The file of variant {variant.name} is missing",
            where=str(source / variant.file),
            seen="the directory holds " + (", ".join(sorted(entries)[:20]) or "nothing"),
            remedy="correct the variant's file",
        )
    weights = _weights(entries, variant.file, source)
    of_others = {
        name for other in variant.others if other in entries for name in _weights(entries, other, source).values()
    }
    away = {variant.file, *variant.others, *weights.values(), *of_others}
    left = {name: path for name, path in entries.items() if name not in away}
    # What is beside the variant's file is beside it under its common name, too.
    left |= {place: entries[name] for place, name in weights.items()}
    common = "model" + PurePosixPath(variant.file).suffix
    if common in left:
        raise FleetError(
            f"Variant {variant.name} takes a name that another file has",
            where=str(source / common),
            seen=f"{variant.file} becomes {common}",
            remedy=f"name {common} as the file of another variant, or rename it",
        )
    for name in away:  # directories that held nothing else
        for directory in PurePosixPath(name).parents:
            if not any(other.startswith(f"{directory}/") for other in left):
                left.pop(str(directory), None)
    return {**left, common: own}


def _weights(entries: Mapping[str, Path], file: str, source: Path) -> dict[str, str]:
    """Return the files of an ONNX file's weights, as it calls them and as the directory does. Raise FleetError."""
    if not file.endswith(".onnx") or file not in entries:
        return {}
    found = {}
    for name in external_files(entries[file]):
        place = PurePosixPath(file).parent / name
        if PurePosixPath(name).is_absolute() or ".." in place.parts or str(place) not in entries:
            raise FleetError(
                "The model's weights are missing",
                where=str(source / file),
                seen=f"it keeps weights in a file {name!r}, which is not beside it",
                remedy="put that file into the model's directory, or save the model with its weights in one file",
            )
        found[str(PurePosixPath(name))] = str(place)
    return found


def _files(source: Path) -> list[tuple[str, Path]]:
    """Return name and path of each file and directory below `source`; raise FleetError for any other kind.

    What Python keeps of modules that were run there is no part of the model.
    """
    found = []
    for path in source.rglob("*"):
        if "__pycache__" in path.relative_to(source).parts:
            continue
        name = path.relative_to(source).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FleetError(
                "A model holds regular files and directories only",
                where=str(path),
                seen="a symbolic link" if path.is_symlink() else "a special file",
                remedy="replace it by a copy of the file, or remove it",
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise FleetError(
                "A file name is not UTF-8",
                where=ascii(str(path)),
                remedy="rename the file",
            ) from error
        found.append((name, path))
    return found


def check_model(model: Model) -> None:
    check_version(model.version)
    if not _NAME.fullmatch(model.name):
        raise FleetError(
            "Not a model name",
            where="name",
            seen=repr(model.name),
            remedy="use lower-case letters and digits, with . _ - between them",
        )
    if not model.source.is_dir():
        raise FleetError(
            "The model's directory does not exist",
            where=str(model.source),
            remedy="give the directory that holds the model's files as source",
        )
    if model.golden and not model.golden.is_dir():
        raise FleetError(
            "The directory of golden cases does not exist",
            where=str(model.golden),
            remedy="correct golden",
        )
