"""The servers beneath: how they are started, watched, guarded and stopped."""
