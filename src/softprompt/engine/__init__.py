"""The engine: a token tree, computed on a frozen causal language model.

Read in this order: ``tree`` (which token attends to which, in integers), ``plans`` (trees of rows and label
candidates), ``runner`` (a tree on a model), ``loss`` (from hidden states to losses). There is a picture in
``docs/engine.md``.

=========================  =====================================================================================
``tree``                   nodes, tokens, and what a plan predicts
``plans``                  plans of rows, examples and label candidates, with a prefix prompt or suffix prompts
``prefix_sharing``         prefixes that rows or label candidates share, which are computed once
``row_prompts``            the prompt of each row of a batch
``runner``                 runs trees on a base model: hidden states, KV caches, logits
``backends.packed``        the fast backend: one sequence, attention by blocks (``attention_cpu``, ``attention_cuda``)
``backends.levelwise``     the backend for all models: a batch per level, with a KV cache of the ancestors
``surgery``                views of a base with parts exchanged, which leave the base untouched: fused layers,
                           activation capture, gradient checkpointing, the LM head, the state of a call
``loss``                   hidden states, and losses through the model's own head
``accumulate``             gradient accumulation over packs, with one pass over the prompt
``kv_cache``               keys, values and hidden states of a node: a prefilled prompt, a text
``text_cache``             KV caches of texts before suffix prompts, in memory and on disk (``disk_spill``)
``selfcheck``              compares the engine with plain forwards, on model types that the tests do not cover
=========================  =====================================================================================

The gradient of a prefix prompt accumulates in attention (``KeyGradients.add`` in ``backends.attention_cpu``): all rows
attend to one set of keys and values of the prompt, and their gradients are summed there.
"""
