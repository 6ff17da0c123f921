"""A model as an ONNX or OpenVINO graph, which runs without torch, checked against the encoder."""
