"""The methods of the quality benchmark. ``quality/method_kinds.py`` lists them by name."""
