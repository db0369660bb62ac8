"""The door: what every request passes before a route, and what every refusal looks like."""
