"""Parts of a base that a view exchanges: fused layers, activation capture, checkpointing, the LM head."""
