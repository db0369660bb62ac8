"""Learned tables: a row a place or a token, looked up and never multiplied with, like an embedding's."""

from torch import nn


class Table(nn.Parameter):
    """A parameter that is an embedding without a module of its own: optimisers do not let it decay."""
