"""The engine: a token tree, computed on a frozen causal language model.

Read in this order: ``tree`` (which token attends to which, in integers), ``plans`` (trees of rows and label
candidates), ``execute`` (which backend computes a tree), ``loss`` (from hidden states to losses). There is a picture in
``docs/engine.md``.

=========================  =====================================================================================
``tree``                   nodes, tokens, and what a plan predicts
``plans``                  plans of rows, examples and label candidates, with a prefix prompt or suffix prompts
``prefix_sharing``         prefixes that rows or label candidates share, which are computed once
``row_prompts``            the prompt of each row of a batch
``execute``                runs a tree with the fastest backend that fits
``backends.packed``        the fast backend: one sequence, attention by blocks (``attention_cpu``, ``attention_cuda``)
``backends.levelwise``     the backend for all models: a batch per level, with a KV cache of the ancestors
``surgery``                views of a base with parts exchanged, which leave the base untouched: fused layers,
                           activation capture, gradient checkpointing, the head, state of a call
``loss``                   hidden states, and losses through the model's own head
``accumulate``             gradient accumulation over packs, with one pass over the prompt
``kv_cache`` ``prefill``   keys and values of a node; of a prompt, computed once
``text_cache``             KV caches of texts before suffix prompts, in memory and on disk
``selfcheck``              compares a model type without tests with its plain forward pass
=========================  =====================================================================================

The gradient of a prefix prompt accumulates in attention (``_Gradients.add`` in ``backends.attention_cpu``): all rows
attend to one set of keys and values of the prompt, and their gradients are summed there.
"""
