"""Trained models for programs without this project: StableHLO, ONNX, safetensors."""
