"""A file of float32 in other numbers, by onnxruntime's own tools."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

    from .export import Precision


def convert(path: Path, precision: Precision) -> None:
    """Rewrite the file ``path``: all numbers as float16, or the weights of linear layers as 8-bit integers.

    What goes in and comes out keeps its type.  Integers are unsigned, a scale to each channel: signed ones
    overflow on processors without VNNI, and the proof here would not show it.
    """
    if precision == "fp32":
        return
    import onnx

    model = onnx.load(path)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(model, keep_io_types=True), path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(
            path,
            path,
            nodes_to_quantize=linear_layers(model),
            weight_type=QuantType.QUInt8,
            per_channel=True,
        )
    finally:
        logging.root.setLevel(level)


def linear_layers(model: ModelProto) -> list[str]:
    """Return the products with a constant matrix to which a constant vector is added: those of the tower.

    Texts and the matrices that render maps have none, and stay as they are.
    """
    axes = {constant.name: len(constant.dims) for constant in model.graph.initializer}
    biased = {
        name
        for node in model.graph.node
        if node.op_type == "Add" and any(axes.get(name) == 1 for name in node.input)
        for name in node.input
    }
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and axes.get(node.input[1]) == 2 and node.output[0] in biased
    ]
