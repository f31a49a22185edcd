"""Two ways to run a token tree on a base: packed into one sequence, or level by level."""
