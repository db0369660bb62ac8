"""The training loop, its checkpoints, and Ray Train around it; code that runs on workers."""
