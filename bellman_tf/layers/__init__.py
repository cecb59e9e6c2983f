"""Layer kinds: per-sample gradients of each, and which layers are covered."""
