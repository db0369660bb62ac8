"""The files of a cluster, and what writes them."""
