"""What a generated file says of itself, signed."""
