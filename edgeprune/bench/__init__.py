"""Measuring on the device: profiles of tasks, latency and energy of models and ONNX files."""
