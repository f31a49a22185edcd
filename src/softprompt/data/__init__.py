"""Rows and how the model reads them: file formats, sources, tasks, templates, tokenization."""
