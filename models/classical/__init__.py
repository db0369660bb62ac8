"""Generative classifiers in closed form: p(x | y) p(y) from counts and moments."""
