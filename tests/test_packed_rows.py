"""Rows that hold several texts, one after the other, with ``position_ids`` that begin again at 0 with each."""

import pytest
import torch
import transformers

import tiny
from softprompt import ConfigError, get_peft_model
from test_model_api import config

LENGTHS = [[4, 7, 1], [9], [2, 3, 5, 2]]  # of the texts in each row


def make(family="llama", **options):
    model = get_peft_model(tiny.fresh(family), config(**options))
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, len(model.prompt)))
    return model


def packed(lengths=LENGTHS, lefts=None):
    """A padded batch of packed rows, and its texts."""
    texts = [tiny.ids(*row, seed=seed) for seed, row in enumerate(lengths)]
    ids, mask = tiny.pad([torch.cat(row) for row in texts], lefts)
    positions, _ = tiny.pad([torch.cat([torch.arange(len(text)) for text in row]) for row in texts], lefts)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    labels = ids.masked_fill(mask == 0, -100)
    labels[labels % 3 == 0] = -100
    return batch | {"labels": labels}, [text for row in texts for text in row]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "bloom", "gpt2", "opt"])
@pytest.mark.parametrize("lefts", [None, [1, 4, 0]])
def test_each_text_of_a_packed_row_is_alone_behind_the_prompt(family, lefts):
    model = make(family)
    batch, texts = packed(lefts=lefts)
    labels = [text.masked_fill(text % 3 == 0, -100) for text in texts]
    output = model(**batch)
    losses = [
        tiny.plain_losses(model.base_model, model.prompt, text, label)
        for text, label in zip(texts, labels, strict=True)
    ]
    expected = torch.cat(losses).mean()
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found, wanted = (torch.autograd.grad(loss, model.prompt)[0] for loss in (output.loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    tokens = output.logits[:, len(model.prompt) :][batch["attention_mask"].bool()]
    alone = [tiny.plain_logits(model.base_model, model.prompt, text) for text in texts]
    torch.testing.assert_close(tokens, torch.cat([each[len(model.prompt) :] for each in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits[0, : len(model.prompt)], alone[0][: len(model.prompt)])


def test_packed_embeddings():
    model = make()
    batch, _ = packed()
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    given, expected = model(inputs_embeds=embeds, **batch), model(input_ids=ids, **batch)
    torch.testing.assert_close(given.loss, expected.loss)
    torch.testing.assert_close(given.logits, expected.logits)


def test_more_packed_rows_than_one_pack(monkeypatch):
    """A pack is cut between texts, in the middle of a row too."""
    model = make()
    batch, _ = packed()
    expected = torch.autograd.grad(model(**batch).loss, model.prompt)[0]
    monkeypatch.setattr("softprompt.inference.forward.default_tokens_per_pack", lambda device: 6)
    output = model(**batch)
    torch.testing.assert_close(torch.autograd.grad(output.loss, model.prompt)[0], expected, rtol=1e-4, atol=1e-6)
    assert output.logits.shape == (3, len(model.prompt) + batch["input_ids"].shape[1], tiny.VOCAB)


def test_the_flattening_collator_of_transformers():
    """All texts in one row, no mask, and the keywords for FlashAttention."""
    model = make()
    texts = tiny.ids(5, 2, 8)
    collate = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    flat = collate([{"input_ids": text.tolist(), "labels": text.tolist()} for text in texts])
    assert flat["input_ids"].shape == (1, 15)
    labels = [torch.cat([torch.tensor([-100]), text[1:]]) for text in texts]  # the collator's: no label on the first
    losses = [tiny.plain_losses(model.base_model, model.prompt, *each) for each in zip(texts, labels, strict=True)]
    assert model(**flat).loss.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


def test_positions_that_go_on_are_one_text():
    model = make()
    batch, _ = packed([[5], [7]], lefts=[2, 0])
    expected = model(**{name: value for name, value in batch.items() if name != "position_ids"})
    for positions in (batch["position_ids"], torch.arange(7)[None], batch["position_ids"] + 3):
        with pytest.warns(UserWarning, match="position_ids are ignored"):
            output = model(**batch | {"position_ids": positions})
        torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions", "use_cache"])
def test_what_needs_one_text_a_row_is_refused(asked):
    batch, _ = packed()
    with pytest.raises(
        ConfigError, match=f"a packed row .* is not supported together with {asked}; put each text into its own row"
    ):
        make()(**batch, **{asked: True})


def test_packed_rows_and_a_suffix_are_refused():
    batch, _ = packed()
    with pytest.raises(ConfigError, match="not supported together with prompt_placement suffix"):
        make(prompt_placement="suffix")(**batch)


def test_without_the_prompt_the_base_gets_the_positions():
    model = make()
    batch, _ = packed()
    expected = model.base_model(**batch)
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch).logits, expected.logits)


def test_a_base_that_knows_no_fused_head():
    batch, _ = packed([[4], [3]])
    del batch["position_ids"]
    with pytest.raises(TypeError, match=r"forward\(\) got an unexpected keyword argument 'fused_lm_head'"):
        make()(**batch, fused_lm_head=True)
