"""Language families: sequences of tokens from text."""
