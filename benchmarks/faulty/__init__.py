"""Faults for benchmarks/faults.py, one module for each room of the house; see room.py."""
