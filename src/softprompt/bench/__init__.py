"""Speed, memory and agreement against PEFT, both sides measured in turn in the same run."""
