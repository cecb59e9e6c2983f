"""Layer kinds: what a training step knows of each, and which layers are covered."""
