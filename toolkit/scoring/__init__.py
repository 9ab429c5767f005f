"""Who says how good a text is."""
