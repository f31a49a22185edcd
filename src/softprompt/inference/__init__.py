"""Scores, generation and predictions with trained prompts."""
