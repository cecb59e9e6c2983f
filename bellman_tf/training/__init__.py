"""One training step: two forward passes, one backward pass, and what happens between them."""
