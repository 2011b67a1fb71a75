"""Run benchmarks: `pytest benchmarks/ --benchmark-only`, `python -m benchmarks.{compare,scaling,drop_in}`."""
