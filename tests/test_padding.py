"""A row's loss, logits and gradient do not depend on padding or on its batch mates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model

P = 3
families = pytest.mark.parametrize("family", tiny.FAMILIES)
some = pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "mpt", "falcon_alibi", "gpt2", "opt"])


def prompted(family, dtype=torch.float64):
    """A model in float64 with a prompt that matters."""
    model = get_peft_model(
        tiny.base(family, dtype), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    ).to(dtype)
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, P))
    return model


def check_batch(model, rows, labels, mask, tolerance=1e-9, *, plain=False):
    """Loss, gradient and logits of a padded batch are those of its rows alone.

    ``rows`` and ``labels`` hold the real tokens; ``mask`` ``[B, T]`` says where they stand.
    """
    real = mask.bool()
    input_ids = torch.zeros_like(mask).masked_scatter(real, torch.cat(rows))
    targets = torch.full_like(mask, 17).masked_scatter(real, torch.cat(labels))  # labels at padding do not count
    model.prompt.grad = None
    more = {"use_cache": True} if plain else {}
    output = model(input_ids=input_ids, attention_mask=mask, labels=targets, **more)
    output.loss.backward()
    got = model.prompt.grad
    pairs = list(zip(rows, labels, strict=True))
    prompt = model.prompt.detach().clone().requires_grad_(True)
    losses = torch.cat([tiny.plain_losses(model.base_model, prompt, *pair) for pair in pairs])
    losses.mean().backward()
    assert prompt.grad.abs().max() > 1e-6
    near(output.loss.detach(), losses.mean().detach(), tolerance)
    near(got, prompt.grad, tolerance)
    logits = output.logits.detach()
    for i, row in enumerate(rows):
        expected = tiny.plain_logits(model.base_model, prompt, row).detach()
        near(logits[i, P:][real[i]], expected[P:], tolerance)
        near(logits[i, :P], expected[:P], tolerance)
    assert (logits[:, P:][~real] == 0).all()


def near(got, expected, tolerance):
    assert got.shape == expected.shape
    if got.numel():
        difference = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
        assert difference <= tolerance, f"differs by {difference:.1e}"


@st.composite
def batches(draw, *, holes):
    """Rows, labels and a mask: padding on the left, on the right, on both sides (or anywhere), empty rows too."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    rows = tiny.ids(*lengths, seed=draw(st.integers(0, 999)))
    labels = [
        row.masked_fill(
            torch.tensor(draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))), dtype=torch.bool), -100
        )
        for row in rows
    ]
    longest = max(range(len(rows)), key=lengths.__getitem__)
    labels[longest][-1] = rows[longest][-1]  # something is supervised
    total = max(lengths) + draw(st.integers(0, 4))
    mask = torch.zeros(len(rows), total, dtype=torch.long)
    for i, length in enumerate(lengths):
        if holes:
            places = draw(st.permutations(range(total)))[:length]
        else:
            left = draw(st.integers(0, total - length))
            places = list(range(left, left + length))
        mask[i, places] = 1
    return rows, labels, mask


@some
@settings(max_examples=12)
@given(batch=batches(holes=False))
def test_any_padding_is_as_none(family, batch):
    with tiny.float64():
        check_batch(prompted(family), *batch)


@some
@settings(max_examples=8)
@given(batch=batches(holes=False))
def test_any_padding_is_as_none_the_plain_way(family, batch):
    """The same through one padded batch with the prompt in each row, as hidden states and caches need it."""
    rows, labels, mask = batch
    with tiny.float64():
        check_batch(prompted(family), rows, labels, mask, plain=True)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
@settings(max_examples=8)
@given(batch=batches(holes=True))
def test_holes_are_padding_too(family, batch):
    with tiny.float64():
        check_batch(prompted(family), *batch)


def mixed():
    rows = tiny.ids(9, 4, 13, 1)
    mask = tiny.pad(rows, [2, 5, 0, 12], 14)[1]
    return rows, [row.clone() for row in rows], mask


@families
def test_mixed_padding_float32(family):
    check_batch(prompted(family, torch.float32), *mixed(), 3e-5)


@families
def test_mixed_padding_the_plain_way_float32(family):
    check_batch(prompted(family, torch.float32), *mixed(), 3e-5, plain=True)


@families
def test_left_and_right_padding_are_equal(family):
    """Bit for bit: the padding is gone before anything is computed."""
    model = prompted(family, torch.float32)
    rows = tiny.ids(9, 4, 13, 1)
    results = []
    for values, mask in (tiny.pad(rows), tiny.left_pad(rows), tiny.pad(rows, [3, 1, 2, 0], 20)):
        model.prompt.grad = None
        loss = model(input_ids=values, attention_mask=mask, labels=values).loss
        loss.backward()
        results.append((loss.detach(), model.prompt.grad))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_content_of_padding_is_never_read():
    model = prompted("llama", torch.float32)
    rows = tiny.ids(9, 4)
    losses = []
    for fill in (0, 50):
        values, mask = tiny.left_pad(rows, fill)
        losses.append(model(input_ids=values, attention_mask=mask, labels=values).loss.item())
    embeds = torch.full((2, 9, tiny.WIDTH), float("nan"))
    for i, row in enumerate(rows):
        embeds[i, 9 - len(row) :] = model.base_model.get_input_embeddings()(row)
    losses.append(model(inputs_embeds=embeds, attention_mask=mask, labels=values).loss.item())
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_masks_of_any_type(dtype):
    model = prompted("llama", torch.float32)
    values, mask = tiny.left_pad(tiny.ids(9, 4))
    expected = model(input_ids=values, attention_mask=mask, labels=values).loss
    assert torch.equal(model(input_ids=values, attention_mask=mask.to(dtype), labels=values).loss, expected)


@pytest.mark.parametrize(
    ("plain", "shape"),
    [
        (False, (2, 12)),
        (False, (2, 1, 9, 9)),
        (False, (1, 9)),
        (True, (1, 9)),
        (True, (2, 12)),
        (True, (2, 1, 9, 9)),
    ],
    ids=str,
)
def test_masks_of_another_shape_are_refused(shape, plain):
    model = prompted("llama", torch.float32)
    values = torch.stack(tiny.ids(9, 9))
    more = {"output_hidden_states": True} if plain else {}
    with pytest.raises(ConfigError, match=r"attention_mask must be \[B, T\] = \[2, 9\]"):
        model(input_ids=values, attention_mask=torch.ones(shape), **more)


def test_batch_without_supervision_has_no_loss_to_speak_of():
    """Nothing supervised: the mean over nothing is not a number, as in PEFT; the logits are there."""
    model = prompted("llama", torch.float32)
    values = torch.stack(tiny.ids(4, 4))
    output = model(input_ids=values, labels=torch.full_like(values, -100))
    assert output.loss.isnan()
    assert output.logits.isfinite().all()


def test_duplicated_rows_weigh_twice():
    model = prompted("llama", torch.float32)
    a, b = tiny.ids(6, 6)
    both = [model(input_ids=x[None], labels=x[None]).loss for x in (a, b)]
    twice = torch.stack([a, a, b])
    got = model(input_ids=twice, labels=twice).loss
    torch.testing.assert_close(got, (2 * both[0] + both[1]) / 3)
