"""Methods compared over tasks, seeds and numbers of training rows."""
