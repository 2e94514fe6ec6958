# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A user's Python file that computes: ``load(context)``, called once, and ``infer(inputs) -> outputs``.

``infer`` is that of the object that ``load`` returned, or the module's own when it returned nothing
or there is no ``load``. The model directory is a package: ``from . import helper`` finds ``helper.py``.
"""

import importlib.util
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Context:
    """What ``load`` is given: the model's directory, name and version, and ``parameters`` of its options."""

    directory: Path
    name: str
    version: str
    parameters: Mapping[str, Any]


class PythonCode:
    """The code, loaded; what it gives is checked against the declared outputs."""

    def __init__(self, file: Path, context: Context, outputs: Mapping[str, TensorSpec]) -> None:
        """Import the file and call ``load``. Raises StartError, whose cause is what the code raised."""
        self._file = file
        self._outputs = outputs
        self._module_name = f"edgeml_model_{uuid.uuid4().hex}"
        try:
            self._infer = self._load(context)
        except BaseException as error:  # the code may raise whatever it likes, SystemExit too
            self.close()
            if isinstance(error, StartError):
                raise
            raise StartError(f"{file}: {_described(error)}{self._hint(error)}") from error

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All declared outputs. The code sees read-only arrays.

        Raises RequestError, whose cause is what the code raised: invalid for a ValueError, else internal.
        """
        try:
            results = self._infer({name: _read_only(array) for name, array in inputs.items()})
        except ValueError as error:
            raise RequestError(Failure.INVALID, f"the model refuses its input: {error}") from error
        except BaseException as error:  # SystemExit would end the thread without an answer
            message = f"the model's code failed with {type(error).__name__}; the server's log says more"
            raise RequestError(Failure.INTERNAL, message) from error
        if not isinstance(results, Mapping):
            raise self._wrong(f"{type(results).__name__}, expected a dictionary of arrays by name")
        if results.keys() != self._outputs.keys():
            raise self._wrong(f"outputs {sorted(map(str, results))}, declared are {sorted(self._outputs)}")
        return {name: self._checked(spec, results[name]) for name, spec in self._outputs.items()}

    def close(self) -> None:
        """Forget the code's modules."""
        self._infer = _closed
        for name in [name for name in sys.modules if name.partition(".")[0] == self._module_name]:
            del sys.modules[name]

    # -- private ---------------------------------------------------------------------------------------------------

    def _load(self, context: Context) -> Callable[[dict[str, Array]], Any]:
        spec = importlib.util.spec_from_file_location(
            self._module_name, self._file, submodule_search_locations=[str(self._file.parent)]
        )
        if spec is None or spec.loader is None:
            raise StartError(f"{self._file}: not a Python file; its name must end in .py")
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[self._module_name] = module
        spec.loader.exec_module(module)
        load = getattr(module, "load", None)
        owner: object = load(context) if load is not None else None
        infer = getattr(module if owner is None else owner, "infer", None)
        if not callable(infer):
            where = "the module has" if owner is None else f"{type(owner).__name__}, returned by load, has"
            raise StartError(f"{self._file}: {where} no function infer(inputs)")
        return infer  # type: ignore[no-any-return]

    def _hint(self, error: BaseException) -> str:
        name = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and name and (self._file.parent / f"{name}.py").exists():
            return f"; files beside it are imported by 'from . import {name}'"
        return ""

    def _checked(self, spec: TensorSpec, value: object) -> Array:
        try:
            # numpy would cut zeros off the end of bytes.
            array = np.array(value, dtype=object) if spec.raw else np.asarray(value)
        except Exception as error:
            raise self._wrong(f"output '{spec.name}' that is no array: {_described(error)}") from error
        if spec.datatype == "BYTES":
            array = self._strings(spec, array)
        elif not np.can_cast(array.dtype, DTYPES[spec.datatype], "safe"):
            wanted = DTYPES[spec.datatype].name
            raise self._wrong(
                f"output '{spec.name}' of {array.dtype}, declared is {spec.datatype}; give it .astype(numpy.{wanted})"
            )
        if not spec.fits(array.shape):
            raise self._wrong(
                f"output '{spec.name}' of shape {list(array.shape)}, declared is {list(spec.shape)} (-1: any size)"
            )
        return np.asarray(array, DTYPES[spec.datatype], order="C")

    def _strings(self, spec: TensorSpec, array: Array) -> Array:
        if array.dtype.kind in ("S" if spec.raw else "UT"):
            array = array.astype(object)
        if array.dtype.kind != "O" and spec.raw:
            raise self._wrong(f"output '{spec.name}' of {array.dtype}, declared is raw BYTES; give it bytes elements")
        if array.dtype.kind != "O":
            raise self._wrong(f"output '{spec.name}' of {array.dtype}, declared is BYTES; give it str elements")
        for element in array.flat:
            if spec.raw:
                if type(element) is not bytes:
                    raise self._wrong(
                        f"output '{spec.name}' with an element of {type(element).__name__}, expected bytes"
                    )
                continue
            if type(element) is not str:
                raise self._wrong(f"output '{spec.name}' with an element of {type(element).__name__}, expected str")
            try:
                element.encode()
            except UnicodeEncodeError as error:
                raise self._wrong(f"output '{spec.name}' with a str that is no Unicode text") from error
        return array

    def _wrong(self, seen: str) -> RequestError:
        return RequestError(Failure.INTERNAL, f"{self._file.name} gave {seen}")


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _closed(_inputs: dict[str, Array]) -> object:
    raise RuntimeError("the model is closed")
