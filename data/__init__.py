"""What is learned from: datasets, their checks and their batches."""
