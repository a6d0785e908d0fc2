"""A file of float32 in other numbers, by onnxruntime's own tools."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

    from .export import Precision


def convert(path: Path, precision: Precision) -> None:
    """Rewrite the file ``path``: the tower in float16, or the weights of linear layers as 8-bit integers.

    What goes in and comes out stays float32, and so does what follows the last linear layers: near 1,
    float16 makes equal what a softmax tells apart, and images would lose their order.  Integers are
    unsigned, a scale to each channel: signed ones overflow on processors without VNNI, and the proof here
    would not show it.
    """
    if precision == "fp32":
        return
    import onnx

    model = onnx.load(path)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(model, keep_io_types=True, node_block_list=head(model))
        join_casts(half)
        onnx.save(half, path)
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


def head(model: ModelProto) -> list[str]:
    """Return the nodes that no linear layer follows: they make scores and maps of features and texts."""
    makers = {output: node for node in model.graph.node for output in node.output}
    layers = set(linear_layers(model))
    waiting = [node for node in model.graph.node if node.name in layers]
    body = set()
    while waiting:
        node = waiting.pop()
        if node.name not in body:
            body.add(node.name)
            waiting += [makers[name] for name in node.input if name in makers]
    return [node.name for node in model.graph.node if node.name not in body]


def join_casts(model: ModelProto) -> None:
    """Take float32 on where it would become float16 and float32 again: the converter does so node by node."""
    from onnx import TensorProto

    kinds = {
        node.output[0]: (node, node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast"
    }
    for node, kind in kinds.values():
        before, half = kinds.get(node.input[0], (None, None))
        if before is not None and kind == TensorProto.FLOAT and half == TensorProto.FLOAT16:
            node.input[0] = before.input[0]
