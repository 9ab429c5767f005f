"""Cheaper passes with the same results, optional: the rest of the toolkit needs none of them."""
