"""One file a kind of dataset: where its samples come from."""
