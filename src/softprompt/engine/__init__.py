"""The engine: a token tree, run on a frozen causal language model.

Read in this order: ``tree.py`` (who attends to whom: integers only), ``packed.py`` and ``attention.py``
(the tree in one sequence), ``loss.py`` (hidden states -> losses). ``docs/engine.md`` has the picture.

========================  =========================================================================
``tree`` ``plans``        nodes and tokens; rows, choices and several prompts as trees
``row_prompts``           the prompt of each row of a batch
``run``                   which way a tree runs
``packed`` ``attention``  the fast way: one sequence, attention by blocks; ``gathered`` on GPUs
``levels``                the way for all: a batch for each level, with a cache of what is above
``view`` ``kernels``      a base with some layers exchanged, untouched itself; the layers
``loss`` ``head``         from hidden states to losses, through the model's own head
``accumulate``            more rows than memory holds
``known`` ``prefilled``    nodes computed once: prompts, and texts (``suffix``, ``texts``)
``recompute``             gradient checkpointing
``selfcheck``             model types that no test covers
========================  =========================================================================

The prompt's gradient arises in ``attention.py`` (``_Gradients.add``): all rows read one set of keys and values
of the prompt, and what they send back adds up there.
"""
