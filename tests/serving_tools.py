"""Adapters of every kind for one tiny base model."""

from __future__ import annotations

from pathlib import Path

import torch

from cli_tools import make_base
from softprompt import PromptTuningConfig, Task, get_peft_model
from softprompt.config.options import ModelOptions
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.probe import LinearProbe
from softprompt.models.loading import load_base
from softprompt.storage.atomic import write_text

KINDS = ("front", "back", "probed", "joint", "writer", "pairs")
"""Prefix; suffix; prefix with linear probe; suffix with ensemble and probe; generation task; two text columns."""


def make_adapters(folder: Path) -> tuple[str, dict[str, str]]:
    """Write a tiny base model and an adapter of each kind; their paths."""
    base = make_base(folder / "base")
    loaded = load_base(ModelOptions(model_name_or_path=base))
    found = {}
    for seed, kind in enumerate(KINDS):
        found[kind] = make_adapter(loaded.model, folder / "adapters" / kind, kind, seed)
    return base, found


def make_adapter(base: torch.nn.Module, folder: Path, kind: str, seed: int) -> str:
    """Write one adapter with random values."""
    draw = torch.Generator().manual_seed(seed)
    width, labels = base.config.hidden_size, ("yes", "no") if seed % 2 else ("good", "bad", "fine")
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3 + seed,
        prompt_placement="suffix" if kind in ("back", "joint") else "prefix",
        base_model_name_or_path=base.name_or_path,
    )
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.prompt.copy_(torch.randn(model.prompt.shape, generator=draw))
    model.save_pretrained(folder)
    columns = ("text", "help") if kind == "pairs" else ("text",)
    template = " ".join(f"{name} : {{{name}}}" for name in columns) + " Label :"
    task = Task(columns, "label", template, () if kind == "writer" else labels, end_token_id=2)
    task.save(folder)
    if kind in ("probed", "joint"):
        size = len(labels)
        numbers = (torch.randn(shape, generator=draw) for shape in ((2, width), (size, width), (size,)))
        LinearProbe(torch.tensor([0, 1]), *numbers, torch.tensor(0.6)).save(folder)
    if kind == "joint":
        Ensemble(torch.randn(3, 2, width, generator=draw), torch.tensor(1.5)).save(folder)
    if kind == "front":  # as softprompt train records it
        write_text(folder / "train_config.yaml", "objective: language_modeling\n")
    return str(folder)


def assert_same(found, expected):
    """Predictions with equal labels, and probabilities equal to 1e-4."""
    found, expected = (each if isinstance(each, list) else [each] for each in (found, expected))
    assert [each.label for each in found] == [each.label for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours.probability / theirs.probability - 1) < 1e-4
