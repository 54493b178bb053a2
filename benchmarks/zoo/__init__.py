"""Coverage: is the tangent exact on a small network of every family? See `python -m benchmarks.zoo --help`."""
