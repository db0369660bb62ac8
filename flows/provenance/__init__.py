"""Where a version comes from, what it needs, and how it leaves and comes."""
