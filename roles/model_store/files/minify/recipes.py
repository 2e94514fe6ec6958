# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a smaller variant is made: by ONNX Runtime's own tools and onnxconverter-common.

The same model and recipe give the same bytes on every processor: nothing here depends on what the processor can do,
what a calibration sees is rounded, and messages are written in a fixed order.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from golden import Arrays, MinifyError
from onnx import TensorProto, version_converter

# The quantizer is imported where it is needed, since that takes seconds.

#: Operators with weights that each recipe stores in 8 bits. ONNX Runtime's CPU has no fast dynamic convolution.
DYNAMIC_OPERATORS = ("Attention", "LSTM", "MatMul")
STATIC_OPERATORS = (
    "Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool",
    "Mul", "Relu",
)  # fmt: skip
WEIGHTED = {"Conv": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "Attention": 1, "ConvTranspose": 1}
EIGHT_BITS = ("int8_dynamic", "int8_static")
LEAST_OPSET = 13
SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class Recipe:
    """What a variant of the catalogue asks for."""

    name: str
    exclude_operators: tuple[str, ...] = ()
    exclude_nodes: tuple[str, ...] = ()


def apply(recipe: Recipe, original: Path, target: Path, calibration: Iterable[Arrays]) -> None:
    """Write the variant of the model `original` to `target`. Raise MinifyError if the recipe does not apply."""
    with tempfile.TemporaryDirectory(prefix="minify-") as directory:
        whole = original
        model = onnx.load(original)
        old = recipe.name in EIGHT_BITS and _opset(model) < LEAST_OPSET
        if old or external_files(original):
            whole = Path(directory) / "model.onnx"
            _save(_upgraded(model) if old else model, whole)
        folded = _folded(whole)
        _check(recipe, model, folded)
        if recipe.name == "optimized":
            _save(folded, target)
        elif recipe.name == "fp16":
            # Folded, since the converter loses the input of a cast that changes nothing.
            _save(_in_half_precision(recipe, folded), target)
        else:
            # Folded, since the quantizer leaves weights alone that an operator makes of constants.
            _save(folded, Path(directory) / "folded.onnx")
            prepared = Path(directory) / "prepared.onnx"
            _prepare(Path(directory) / "folded.onnx", prepared)
            if recipe.name == "int8_dynamic":
                _save(_dynamic(recipe, prepared, Path(directory)), target)
            else:
                _save(_static(recipe, prepared, Path(directory), calibration), target)


def applicable(model: onnx.ModelProto) -> dict[str, str]:
    """Return each recipe, with why it does not apply to the model, which is folded; empty where it does."""
    weighted = _weighted(model)
    # A Gemm is taken apart into a MatMul and an Add.
    dynamic = sum(weighted[name] for name in (*DYNAMIC_OPERATORS, "Gemm"))
    static = sum(weighted[name] for name in ("Conv", "Gemm", "MatMul"))
    seen = ", ".join(f"{number} {name}" for name, number in sorted(weighted.items())) or "none"
    branched = sorted({node.op_type for node in model.graph.node for item in node.attribute if item.HasField("g")})
    if branched:
        seen += f", and what lies in branches of {' and '.join(branched)}, which no recipe changes"
    done = any(node.op_type in ("DequantizeLinear", "QuantizeLinear", "MatMulInteger") for node in model.graph.node)
    eight = "the model is quantized already" if done else ""
    floats = any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer)
    return {
        "int8_dynamic": eight
        or ("" if dynamic else f"it needs Attention, Gemm, LSTM or MatMul with weights; seen: {seen}"),
        "int8_static": eight or ("" if static else f"it needs Conv, Gemm or MatMul with weights; seen: {seen}"),
        "fp16": "" if floats else f"it needs weights in single precision; seen: {seen}",
        "optimized": "",
    }


def _opset(model: onnx.ModelProto) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the least opset that has scales per channel. Raise MinifyError if it cannot be had."""
    try:
        return version_converter.convert_version(model, LEAST_OPSET)
    except Exception as error:  # its exceptions have no common base
        raise MinifyError(
            f"8 bits need opset {LEAST_OPSET}, and ONNX cannot convert the model to it. Seen: opset {_opset(model)}; "
            f"{str(error).strip().splitlines()[0][:300]}. What to do: export the model with opset {LEAST_OPSET} or "
            "newer, or use fp16."
        ) from None


def _weighted(model: onnx.ModelProto) -> Counter[str]:
    """Return how many operators of each kind multiply by weights in single precision."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[WEIGHTED[node.op_type]] in weights
    )


def _check(recipe: Recipe, model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    if recipe.name == "optimized" and (recipe.exclude_operators or recipe.exclude_nodes):
        raise MinifyError(
            "The recipe optimized changes no operator's precision. Seen: exclude_operators or exclude_nodes. What "
            "to do: remove it."
        )
    found = applicable(folded)
    reason = found[recipe.name]
    if not reason:
        unknown = sorted(set(recipe.exclude_operators) - {node.op_type for node in model.graph.node})
        names = {node.name for node in model.graph.node}
        unknown += sorted(set(recipe.exclude_nodes) - names)
        if unknown:
            operators = ", ".join(sorted({node.op_type for node in model.graph.node}))
            raise MinifyError(
                f"The recipe excludes what the model does not have. Seen: {', '.join(unknown)}; the model's operators "
                f"are {operators}. What to do: correct exclude_operators or exclude_nodes."
            )
        return
    fitting = ", ".join(name for name, why in found.items() if not why)
    raise MinifyError(
        f"The recipe {recipe.name} does not apply to this model. Seen: {reason}. What to do: use one of {fitting}."
    )


def _prepare(original: Path, target: Path) -> None:
    """Infer shapes and fold what is constant, as the quantizer asks for."""
    from onnxruntime.quantization import quant_pre_process

    try:
        quant_pre_process(str(original), str(target), auto_merge=True)
    except Exception:  # symbolic shapes are a help only, and its exceptions have no common base
        quant_pre_process(str(original), str(target), skip_symbolic_shape=True)


def _excluded(recipe: Recipe, model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that stay as they are."""
    return [
        node.name
        for node in model.graph.node
        if node.name in recipe.exclude_nodes or node.op_type in recipe.exclude_operators
    ]


def _dynamic(recipe: Recipe, prepared: Path, directory: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    written = directory / "quantized.onnx"
    # A Gemm that stays would be taken apart all the same, so excluded nodes go by name.
    quantize_dynamic(
        prepared,
        written,
        op_types_to_quantize=list(DYNAMIC_OPERATORS),
        per_channel=True,
        # Processors without VNNI would overflow with 8 bits of weights, and answer otherwise than those with it.
        reduce_range=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_excluded(recipe, onnx.load(prepared, load_external_data=False)),
    )
    return onnx.load(written)


def _static(recipe: Recipe, prepared: Path, directory: Path, calibration: Iterable[Arrays]) -> onnx.ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType, create_calibrator

    model = onnx.load(prepared)
    _flatten_biases(model)
    excluded = _excluded(recipe, model)
    operators = [name for name in STATIC_OPERATORS if name not in recipe.exclude_operators]
    calibrator = create_calibrator(prepared, operators, str(directory / "augmented.onnx"))
    calibrator.collect_data(_Reader(calibration))
    ranges = calibrator.compute_data()
    del calibrator
    for name, data in ranges.items():
        low, high = data.lowest, data.highest
        ranges.data[name].lowest, ranges.data[name].highest = _rounded(low), _rounded(high)
    quantizer = QDQQuantizer(
        model,
        True,  # per channel
        True,  # reduced range, as above
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges,
        [],
        excluded,
        operators,
        {"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _flatten_biases(model: onnx.ModelProto) -> None:
    """Give each Gemm's bias [1, n] the shape [n]: the quantizer takes no other for weights with a scale per channel."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in model.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


class _Reader:
    """As onnxruntime.quantization.CalibrationDataReader, which is checked by its method alone."""

    def __init__(self, inputs: Iterable[Arrays]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._inputs, None)


def _rounded(value: Any) -> Any:
    """Return what a calibration saw with few digits: processors differ in the last ones."""
    text = np.format_float_scientific(np.asarray(value).item(), precision=SIGNIFICANT_DIGITS - 1, unique=False)
    return np.array(float(text), dtype=np.float32)


def _in_half_precision(recipe: Recipe, model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxconverter_common import float16

    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    casts = {node.name for node in model.graph.node if node.op_type == "Cast"} - {*recipe.exclude_nodes}
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *recipe.exclude_operators]
    converted = float16.convert_float_to_float16(
        model, keep_io_types=True, op_block_list=blocked, node_block_list=list(recipe.exclude_nodes)
    )
    # The converter takes each of the model's own casts to single precision for one to half precision, and leaves it.
    for node in converted.graph.node:
        for attribute in node.attribute if node.name in casts else ():
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    return converted


def _folded(original: Path) -> onnx.ModelProto:
    """Return the model with constants folded and without what computes nothing. What else ONNX Runtime optimises
    depends on the processor, and is done on the device."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="minify-") as directory:
        written = Path(directory) / "optimized.onnx"
        options.optimized_model_filepath = str(written)
        onnxruntime.InferenceSession(str(original), options, providers=["CPUExecutionProvider"])
        return onnx.load(written)


def _save(model: onnx.ModelProto, target: Path) -> None:
    """Write the model with its own weights only: in the file itself, or beside it where one file cannot hold them.

    Shapes of values between operators go: the engine infers them, and they can be as many bytes as small weights.
    """
    del model.graph.value_info[:]
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    data_size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if data_size >= 2_000_000_000:
        onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")
    else:
        target.write_bytes(model.SerializeToString(deterministic=True))


def external_files(model: Path) -> set[str]:
    """Return the files beside a model that hold its weights."""
    found = onnx.load(model, load_external_data=False)
    entries: Mapping[str, str]
    names = set()
    for tensor in found.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            names.add(entries["location"])
    return names
