"""Backends that run a token tree on a base: packed into one sequence, or levelwise."""
