"""Model cards and plots, made from the record of a run."""
