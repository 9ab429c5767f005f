"""Floor 3: who picks the best."""
