"""A search: what is tried, the trials on Ray Tune, and what MLflow remembers of them."""
