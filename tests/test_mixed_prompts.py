"""Label scores of rows that have prompts of their own, in one run of the model."""

import pytest
import torch

import tiny
from softprompt.engine.runner import ModelRunner
from softprompt.inference.score import score_labels_mixed

TEXTS = [row.tolist() for row in tiny.ids(5, 9, 1, 13, 4)]
LABELS = [[7, 8, 9], [10], [7, 11]]
PROMPT_OF_ROW = [2, 0, 2, 1, 0]


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "mistral", "mpt"])
@pytest.mark.parametrize("prefilled", [False, True], ids=["matrices", "prefilled"])
def test_each_row_is_scored_with_its_own_prompt(family, prefilled):
    """In the order of the rows; prompts of different lengths; one of them is not used."""
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        prompts = [tiny.prompt_for(model, length, seed=length).detach() for length in (3, 5, 4, 2)]
        given = [ModelRunner(model).prefill_prompt(prompt) for prompt in prompts] if prefilled else prompts
        found = score_labels_mixed(model, given, PROMPT_OF_ROW, TEXTS, LABELS)
        for row, (number, text) in enumerate(zip(PROMPT_OF_ROW, TEXTS, strict=True)):
            for column, label in enumerate(LABELS):
                expected = tiny.plain_score(model, prompts[number], text, label)
                assert float(found[row, column]) == pytest.approx(float(expected), rel=1e-5)


def test_no_rows():
    assert score_labels_mixed(tiny.base("llama"), [], [], [], LABELS).shape == (0, 3)
