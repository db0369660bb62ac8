"""Language: text that is written, answered, translated and embedded."""
