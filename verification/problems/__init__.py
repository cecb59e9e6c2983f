"""Random problems as Hypothesis strategies: matrices with a chosen spectrum, stages, games, networks."""
