"""Examples on real data; one idea per file, run with `python -m keras_examples.<name>`."""
