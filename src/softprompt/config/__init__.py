"""Options of a run, and PEFT's adapter configuration: names and defaults. No torch."""
