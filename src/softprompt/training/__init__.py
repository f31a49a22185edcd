"""Training runs: options in, a finished adapter folder out."""
