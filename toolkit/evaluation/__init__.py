"""Floor 3: how good it is, and a page that shows it."""
