"""assent and its peers on the same models and data, in turns: `python -m benchmarks`. See docs/benchmarks.md."""
