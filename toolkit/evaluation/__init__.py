"""Floor 4: how good it is, and a page that shows it."""
