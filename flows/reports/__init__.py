"""Self-contained HTML pages: no script, font or picture from elsewhere, readable in light and dark."""
