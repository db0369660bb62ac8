"""The `atelier` command line: verbs by topic; nothing heavy is imported until a verb needs it."""
