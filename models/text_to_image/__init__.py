"""Pictures from text, in stages that are trained one after the other: DALL-E and its kin."""
