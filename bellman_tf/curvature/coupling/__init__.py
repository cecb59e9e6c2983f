"""Players that act together: one metric for all of a stage."""
