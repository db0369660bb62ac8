"""Variational families: approximate density by a lower bound."""
