"""What the recipes can be told, by subject: one dataclass of flags for each."""
