"""Floor 3: people on a page, and scripts beside them, pick the best; a store keeps the labels."""
