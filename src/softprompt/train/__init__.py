"""Training: ``job.py`` is a whole run from options to a finished folder, ``loop.py`` its inner loop."""
