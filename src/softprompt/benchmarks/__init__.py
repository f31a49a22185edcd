"""``softprompt benchmark``: speed against PEFT, and quality of methods over tasks and seeds."""
