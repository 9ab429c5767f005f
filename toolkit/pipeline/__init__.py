"""Floor 5: run recipes one after another, and the online loop of labels and training."""
