"""Pictures, clips, meshes and sounds: read, written, and whether there is anything in them."""
