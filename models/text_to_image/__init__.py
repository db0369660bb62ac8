"""Pictures from text in stages: what captions and pictures have in common, and what is drawn from it."""
