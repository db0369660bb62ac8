"""Text to speech: a front end's phonemes, their alignment with recordings, and families that speak."""
