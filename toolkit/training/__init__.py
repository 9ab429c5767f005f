"""Floor 3: the order of events, for reward models and for PPO."""
