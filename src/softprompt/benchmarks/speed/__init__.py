"""Speed and memory of softprompt, as ratios to PEFT measured in the same run."""
