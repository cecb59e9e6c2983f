"""Experiments on real data, one question each, run with `python -m keras_examples.studies.NAME`."""
