"""Float64 NumPy/SciPy twins of every fast formula, written from the mathematics; nothing here imports bellman_tf."""
