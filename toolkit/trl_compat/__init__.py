"""Lets what was written for TRL 1.12's PPO run here: its two classes, and its YAML files."""
