"""How a prepared split is read: its shards verified, its rows made of them once and kept, and taken as tensors."""
