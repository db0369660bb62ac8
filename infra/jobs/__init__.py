"""Durable jobs: work that outlives whoever asked for it and whatever does it, and the news of its end."""
