"""Pictures, clips and sounds: read, written, and whether there is anything in them."""
