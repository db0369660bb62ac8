"""Adversarial families: implicit density, learned from a critic."""
