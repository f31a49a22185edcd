"""Classification quality of methods over tasks, seeds and numbers of training rows."""
