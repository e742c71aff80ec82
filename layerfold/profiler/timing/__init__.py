"""How a number is measured: policy, blocks, turns, intervals. Imports no other room of the profiler."""
