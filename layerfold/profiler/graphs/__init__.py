"""What is measured, as ONNX: segments, and whole networks under a plan. Imports no other room of the profiler."""
