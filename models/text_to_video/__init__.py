"""Text to video: Make-A-Video."""
