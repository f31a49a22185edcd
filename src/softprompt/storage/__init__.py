"""Files on disk and on the Hub: atomic writes, adapter weights read as untrusted input, run records."""
