"""Judge networks and the metrics computed with them."""
