"""Benchmarks of speed (against PEFT) and of quality (methods over tasks and seeds)."""
