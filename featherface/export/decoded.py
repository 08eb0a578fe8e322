"""Decoding and non-maximum suppression inside the graph: image in, faces out.

    image         float32 [B, 3, H, W], RGB 0..255, any size
    boxes         float32 [N, 4], x1, y1, x2, y2 in pixels of the image, within its borders
    scores        float32 [N], best first within each image
    landmarks     float32 [N, 5, 2]
    image_index   int64 [N], the image of the batch that each face is in

Padding to multiples of 32, anchors, coding, suppression and voting are those of ``FaceDetector``,
in operators of opset 17; they are written out below in ONNX's own text format. They join any graph
with raw outputs, whatever its precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import compose, parser

from featherface.anchors import ANCHOR_SIZES, CENTRE_VARIANCE, SIZE_VARIANCE, STRIDES
from featherface.box_voting import VOTE_IOU
from featherface.errors import ConfigError
from featherface.export.source_model import add_metadata

MOST_FACES = 20_000  # of an image
OUTPUTS = ("boxes", "scores", "landmarks", "image_index")

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

PADDING = (
    HEAD
    + """
padding (float[batch, 3, height, width] image)
    => (float[batch, 3, rows, columns] padded, int64[2] size, int64[2] padded_size)
{
    size = Shape <start = 2> (image)
    multiple = Constant <value_ints = [32]> ()
    remainder = Mod (size, multiple)
    missing = Sub (multiple, remainder)
    after = Mod (missing, multiple)
    before = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
    pads = Concat <axis = 0> (before, after)
    padded = Pad <mode = "constant"> (image, pads)
    padded_size = Add (size, after)
}
"""
)

# Anchors of one stride: x, y and size, [rows * columns * 2] each.
STRIDE = """
    stride_{s} = Constant <value_ints = [{s}]> ()
    step_{s} = Constant <value_floats = [{s}.0]> ()
    sizes_{s} = Constant <value_floats = {sizes}> ()
    cells_{s} = Div (padded_size, stride_{s})
    shape_{s} = Concat <axis = 0> (cells_{s}, two)
    rows_{s} = Gather (cells_{s}, first)
    columns_{s} = Gather (cells_{s}, second)
    row_numbers_{s} = Range (first, rows_{s}, second)
    column_numbers_{s} = Range (first, columns_{s}, second)
    row_floats_{s} = Cast <to = 1> (row_numbers_{s})
    column_floats_{s} = Cast <to = 1> (column_numbers_{s})
    row_middles_{s} = Add (row_floats_{s}, half)
    column_middles_{s} = Add (column_floats_{s}, half)
    row_pixels_{s} = Mul (row_middles_{s}, step_{s})
    column_pixels_{s} = Mul (column_middles_{s}, step_{s})
    row_grid_{s} = Unsqueeze (row_pixels_{s}, axes_1_2)
    column_grid_{s} = Unsqueeze (column_pixels_{s}, axis_1)
    y_map_{s} = Expand (row_grid_{s}, shape_{s})
    x_map_{s} = Expand (column_grid_{s}, shape_{s})
    size_map_{s} = Expand (sizes_{s}, shape_{s})
    y_{s} = Reshape (y_map_{s}, column)
    x_{s} = Reshape (x_map_{s}, column)
    size_{s} = Reshape (size_map_{s}, column)
"""

DECODING = (
    HEAD
    + """
decoding (float[batch, anchors] anchor_scores, float[batch, anchors, 4] box_deltas,
          float[batch, anchors, 10] landmark_deltas, int64[2] image_size, int64[2] padded_size)
    => (float[faces, 4] boxes, float[faces] scores, float[faces, 5, 2] landmarks,
        int64[faces] image_index)
{{
    first = Constant <value_int = 0> ()
    second = Constant <value_int = 1> ()
    two = Constant <value_ints = [2]> ()
    half = Constant <value_floats = [0.5]> ()
    zero = Constant <value_floats = [0.0]> ()
    column = Constant <value_ints = [-1, 1]> ()
    axis_1 = Constant <value_ints = [1]> ()
    axes_1_2 = Constant <value_ints = [1, 2]> ()
    {strides}
    x = Concat <axis = 0> ({xs})
    y = Concat <axis = 0> ({ys})
    anchor_sizes = Concat <axis = 0> ({sizes})
    centres = Concat <axis = 1> (x, y)

    centre_variance = Constant <value_floats = [{centre_variance}]> ()
    size_variance = Constant <value_floats = [{size_variance}]> ()
    halves_split = Constant <value_ints = [2, 2]> ()
    centre_deltas, size_deltas = Split <axis = 2> (box_deltas, halves_split)
    reach = Mul (anchor_sizes, centre_variance)
    moves = Mul (centre_deltas, reach)
    box_centres = Add (centres, moves)
    exponents = Mul (size_deltas, size_variance)
    growth = Exp (exponents)
    half_anchors = Mul (anchor_sizes, half)
    half_sizes = Mul (growth, half_anchors)
    low_corners = Sub (box_centres, half_sizes)
    high_corners = Add (box_centres, half_sizes)
    all_boxes = Concat <axis = 2> (low_corners, high_corners)

    class_scores = Unsqueeze (anchor_scores, axis_1)
    most = Constant <value_ints = [{most}]> ()
    nms_iou = Constant <value_floats = [{nms_iou}]> ()
    score_threshold = Constant <value_floats = [{score_threshold}]> ()
    selected = NonMaxSuppression (all_boxes, class_scores, most, nms_iou, score_threshold)
    selected_columns = Constant <value_ints = [0, 2]> ()
    image_and_anchor = Gather <axis = 1> (selected, selected_columns)
    third = Constant <value_int = 2> ()
    images = Gather <axis = 1> (selected, first)
    anchors = Gather <axis = 1> (selected, third)
    best_boxes = GatherND (all_boxes, image_and_anchor)
    face_scores = GatherND (anchor_scores, image_and_anchor)
    face_deltas = GatherND (landmark_deltas, image_and_anchor)
    face_centres = Gather (centres, anchors)
    face_reach = Gather (reach, anchors)

    above = Greater (anchor_scores, score_threshold)
    voter_columns = NonZero (above)
    voter_rows = Transpose <perm = [1, 0]> (voter_columns)
    voter_boxes = GatherND (all_boxes, voter_rows)
    voter_scores = GatherND (anchor_scores, voter_rows)
    voter_images = Gather (voter_columns, first)
    axis_0 = Constant <value_ints = [0]> ()
    best_rows = Unsqueeze (best_boxes, axis_1)
    voter_grid = Unsqueeze (voter_boxes, axis_0)
    best_low, best_high = Split <axis = 2> (best_rows, halves_split)
    voter_low, voter_high = Split <axis = 2> (voter_grid, halves_split)
    shared_low = Max (best_low, voter_low)
    shared_high = Min (best_high, voter_high)
    shared_reach = Sub (shared_high, shared_low)
    shared_sides = Max (shared_reach, zero)
    overlaps = ReduceProd <axes = [2], keepdims = 0> (shared_sides)
    best_sides = Sub (best_high, best_low)
    voter_sides = Sub (voter_high, voter_low)
    best_areas = ReduceProd <axes = [2], keepdims = 0> (best_sides)
    voter_areas = ReduceProd <axes = [2], keepdims = 0> (voter_sides)
    both_areas = Add (best_areas, voter_areas)
    unions = Sub (both_areas, overlaps)
    vote_iou = Constant <value_floats = [{vote_iou}]> ()
    needed = Mul (unions, vote_iou)
    near = Greater (overlaps, needed)
    face_images = Unsqueeze (images, axis_1)
    same_image = Equal (face_images, voter_images)
    votes = And (near, same_image)
    weights = Where (votes, voter_scores, zero)
    weight_sums = ReduceSum <keepdims = 1> (weights, axis_1)
    box_sums = MatMul (weights, voter_boxes)
    face_boxes = Div (box_sums, weight_sums)

    points = Constant <value_ints = [-1, 5, 2]> ()
    point_deltas = Reshape (face_deltas, points)
    point_reach = Unsqueeze (face_reach, axis_1)
    point_moves = Mul (point_deltas, point_reach)
    point_centres = Unsqueeze (face_centres, axis_1)
    face_points = Add (point_centres, point_moves)

    width_height = Constant <value_ints = [1, 0]> ()
    limit_ints = Gather (image_size, width_height)
    limit = Cast <to = 1> (limit_ints)
    corner_shape = Constant <value_ints = [-1, 2, 2]> ()
    face_corners = Reshape (face_boxes, corner_shape)
    corners_below = Min (face_corners, limit)
    corners = Max (corners_below, zero)
    points_below = Min (face_points, limit)
    points_inside = Max (points_below, zero)
    low = Gather <axis = 1> (corners, first)
    high = Gather <axis = 1> (corners, second)
    sides = Sub (high, low)
    least_side = ReduceMin <axes = [1], keepdims = 0> (sides)
    visible = Greater (least_side, zero)
    box_shape = Constant <value_ints = [-1, 4]> ()
    box_rows = Reshape (corners, box_shape)
    boxes = Compress <axis = 0> (box_rows, visible)
    scores = Compress <axis = 0> (face_scores, visible)
    landmarks = Compress <axis = 0> (points_inside, visible)
    image_index = Compress <axis = 0> (images, visible)
}}
"""
)


def with_decoding(
    model: onnx.ModelProto, score_threshold: float = 0.5, nms_iou: float = 0.4
) -> onnx.ModelProto:
    """``model`` (raw outputs; float32, float16 or int8) with the steps to faces in the graph.

    Raises ``ConfigError`` for a threshold out of range.
    """
    for name, value in (("score_threshold", score_threshold), ("nms_iou", nms_iou)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}={value}: give a number from 0 to 1")
    padding = parser.parse_model(PADDING)
    decoding = parser.parse_model(_decoding_text(score_threshold, nms_iou))
    for part in (padding, decoding):
        del part.opset_import[:]
        part.opset_import.extend(model.opset_import)
        part.ir_version = model.ir_version
    network = compose.add_prefix(model, "network/")
    del network.metadata_props[:]
    padded = compose.merge_models(padding, network, [("padded", "network/image")])
    whole = compose.merge_models(
        padded,
        compose.add_prefix(decoding, "decoding/"),
        [
            ("network/scores", "decoding/anchor_scores"),
            ("network/box_deltas", "decoding/box_deltas"),
            ("network/landmark_deltas", "decoding/landmark_deltas"),
            ("size", "decoding/image_size"),
            ("padded_size", "decoding/padded_size"),
        ],
        outputs=[f"decoding/{name}" for name in OUTPUTS],
    )
    _rename_outputs(whole.graph, OUTPUTS)
    del whole.opset_import[:]  # merging repeats them
    whole.opset_import.extend(model.opset_import)
    whole.producer_name = model.producer_name
    whole.metadata_props.extend(model.metadata_props)
    add_metadata(
        whole, decoded="yes", score_threshold=f"{score_threshold:g}", nms_iou=f"{nms_iou:g}"
    )
    onnx.checker.check_model(whole)
    return whole


def _decoding_text(score_threshold: float, nms_iou: float) -> str:
    strides = "".join(
        STRIDE.format(s=stride, sizes=[float(size) for size in sizes])
        for stride, sizes in zip(STRIDES, ANCHOR_SIZES, strict=True)
    )
    return DECODING.format(
        strides=strides,
        xs=", ".join(f"x_{stride}" for stride in STRIDES),
        ys=", ".join(f"y_{stride}" for stride in STRIDES),
        sizes=", ".join(f"size_{stride}" for stride in STRIDES),
        centre_variance=CENTRE_VARIANCE,
        size_variance=SIZE_VARIANCE,
        most=MOST_FACES,
        vote_iou=f"{VOTE_IOU:.6f}",
        nms_iou=f"{nms_iou:.6f}",
        score_threshold=f"{score_threshold:.6f}",
    )


def _rename_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Take the prefix off the graph's outputs."""
    for name in names:
        for node in graph.node:
            for position, output in enumerate(node.output):
                if output == f"decoding/{name}":
                    node.output[position] = name
    for output in graph.output:
        output.name = output.name.removeprefix("decoding/")
