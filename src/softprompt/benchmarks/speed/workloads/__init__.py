"""The workloads of the speed benchmark, one module each."""
