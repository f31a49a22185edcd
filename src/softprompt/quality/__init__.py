"""``softprompt benchmark``: how well methods label, over tasks, seeds and numbers of training rows."""
