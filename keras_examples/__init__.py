"""Lessons, studies and the papers' experiments: `keras_examples/README.md` lists what there is."""
