"""Lists the formats that a retrained graph can be converted to, by the Converter of each."""

from retraining.export import to_onnx, to_pixels_graph, to_saved_model, to_tflite

FORMATS = (
    to_pixels_graph.CONVERTER,
    to_saved_model.CONVERTER,
    to_tflite.CONVERTER,
    to_onnx.CONVERTER,
)
CONVERTERS = {c.kind: c for converter in FORMATS for c in (converter, *converter.variants.values())}
