"""Bases whose weights are tensors of a class of their own: quantized ones, with few operations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from softprompt import BaseModelError, PromptTuningConfig, get_peft_model
from softprompt.engine.surgery.fused import FrozenLinear, OpaqueLinear, fused
from softprompt.inference.classifier import Classes, mean_states
from softprompt.inference.evaluate import eval_loss, evaluate_examples
from softprompt.types import Example

aten = torch.ops.aten
FAMILIES = ["llama", "gemma3", "gpt_neox", "opt350", "mpt", "phi"]


class Int8(torch.Tensor):
    """A matrix of 8-bit numbers with a scale for each row, as torchao has them: ``nn.Linear`` and float32 from outside.

    It has no memory that could be pointed at, and knows three operations; any other is an error.
    """

    passes_gradients = True

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype, device=numbers.device)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    @classmethod
    def of(cls, weight):
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        return cls((weight.detach() / scale).round().to(torch.int8), scale)

    def dense(self):
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, *bias = args
            return F.linear(x if weight.passes_gradients else x.detach(), weight.dense(), *bias, **kwargs or {})
        if function is F.embedding:
            return F.embedding(args[0], args[1].dense(), *args[2:], **kwargs or {})
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (aten.detach.default, aten.clone.default):
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(f"{cls.__name__} has no {function}")


class OneWay(Int8):
    """Whose product has no gradient, as where activations are rounded too."""

    passes_gradients = False


def quantized(family, kind=Int8, embeddings=False):
    """A base with such weights in all linear layers, at both ends too if asked, and the same numbers in a plain one."""
    opaque, plain = (copy.deepcopy(tiny.base(family)) for _ in range(2))
    ends = (opaque.get_input_embeddings(), opaque.get_output_embeddings())
    for module, twin in zip(opaque.modules(), plain.modules(), strict=True):
        if (type(module) is nn.Linear and module not in ends) or (embeddings and module in ends):
            weight = kind.of(module.weight)
            twin.weight = nn.Parameter(weight.dense(), requires_grad=False)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return opaque, plain


def prompted(base):
    torch.manual_seed(0)
    return get_peft_model(base, PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4))


def near(got, expected):
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("embeddings", [False, True], ids=["layers", "embeddings"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_compute_what_plain_ones_do(family, embeddings):
    """Training, evaluation, hidden states and generation."""
    models = [prompted(base) for base in quantized(family, embeddings=embeddings)]
    ids, mask = tiny.left_pad(tiny.ids(9, 5, 12, 7))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    rows = [Example(tuple(row.tolist()), (40, 2), "yes") for row in tiny.ids(9, 1, 4)]
    classes = Classes(("yes", "no"), ((40, 2), (41, 42, 2)))
    found = []
    for model in models:
        output = model(**batch)
        output.loss.backward()
        metrics = evaluate_examples(model.prompted, rows, classes, batch_size=2)
        scored = metrics.eval_loss, eval_loss(model.prompted, rows, batch_size=2)
        written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        states = mean_states(model.prompted, rows, classes, batch_size=2)
        found.append((output.loss.detach(), model.prompt.grad, output.logits.detach(), *map(torch.tensor, scored)))
        found[-1] += (states, written)
    for ours, plain in zip(*found, strict=True):
        near(ours, plain)


def test_which_layers_are_opaque():
    opaque, plain = (nn.Linear(8, 6).requires_grad_(False) for _ in range(2))
    opaque.weight = nn.Parameter(Int8.of(opaque.weight), requires_grad=False)
    assert type(opaque.weight) is Int8
    assert fused(opaque) is OpaqueLinear
    assert fused(plain) in (FrozenLinear, nn.Linear)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_weights_that_pass_no_gradient_cannot_be_trained_on(family):
    """The residual stream would pass some on, so a gradient would come out: that of another model."""
    base, plain = quantized(family, OneWay)
    model = prompted(base)
    (row,) = tiny.ids(9)
    with torch.no_grad():
        near(model(input_ids=row[None]).logits, prompted(plain)(input_ids=row[None]).logits)
    with pytest.raises(
        BaseModelError, match=r"no gradient flows .* weights \(OneWay\).*weight-only quantization"
    ) as no:
        model(input_ids=row[None], labels=row[None])
    assert "\n" not in str(no.value)
