"""The test suite of ONNX's backends, through OPCEL and other engines, case by case."""
