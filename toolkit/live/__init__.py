"""A page that shows a PPO run while it trains, in a process of its own."""
