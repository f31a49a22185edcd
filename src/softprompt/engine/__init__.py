"""The engine: a token tree, run on a frozen causal language model.

Read in this order: ``tree.py`` (who attends to whom: integers only), ``run.py`` (tree + frozen base ->
hidden states), ``loss.py`` (hidden states -> loss). The prompt's gradient arises in ``run.py``, where
every row's pass reads the keys and values of the *one* pass over the prompt.
"""
