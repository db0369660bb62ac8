"""Building blocks that two families use unchanged; a block moves here when the second needs it."""
