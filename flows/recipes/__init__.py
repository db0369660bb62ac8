"""The recipes of this repository, and what makes a recipe of a file."""
