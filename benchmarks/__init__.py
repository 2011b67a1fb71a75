"""Benchmarks: `pytest benchmarks/ --benchmark-only`, `python -m benchmarks.compare`, `python -m benchmarks.scaling`."""
