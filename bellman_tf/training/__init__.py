"""One training step: the model run once with a re-weighted loss, or two passes over its trace."""
