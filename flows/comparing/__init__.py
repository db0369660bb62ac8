"""Versions and recipes beside one another."""
