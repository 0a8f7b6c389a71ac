"""ONNX models to graphs and back; the only room that knows protobuf."""
