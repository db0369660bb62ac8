"""Autoregressive families: exact density, one pixel after another."""
