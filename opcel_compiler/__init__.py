"""OPCEL: a graph compiler that turns an ONNX model into a fast, checked, self-contained artifact."""
