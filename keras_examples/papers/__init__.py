"""The tables and figures of the four papers, run again: `python -m keras_examples.papers --list`."""
