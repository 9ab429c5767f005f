"""Floor 5: recipes in a row, and the online loop of sampling, labeling and training."""
