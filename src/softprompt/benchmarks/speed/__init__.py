"""Speed and memory against PEFT, as ratios within one run."""
