"""From captions to things in space."""
