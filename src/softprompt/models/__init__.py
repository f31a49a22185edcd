"""Base models: loading, families, devices, vocabulary."""
