"""A server for many adapters on one base model."""
