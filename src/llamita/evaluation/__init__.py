"""Judging a model: benchmarks with intervals, bits per byte, generated code, comparison."""
