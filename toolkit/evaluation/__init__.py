"""Floor 4: evaluate policies and reward models, and show the results on pages."""
