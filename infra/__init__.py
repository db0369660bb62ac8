"""The outside world, one module a system; imports nothing of ours."""
