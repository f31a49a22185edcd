"""Checkpoints: an adapter folder that also holds the optimizer's moments and the trainer state."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..config.adapter_config import PromptTuningConfig
from ..data.task import Task
from ..errors import AdapterError, ConfigError
from ..storage.adapter import WEIGHTS_NAME, read_prompt, write_prompt
from ..storage.atomic import write_folder
from ..storage.record import STATE_NAME, TrainerState
from ..types import Placement

OPTIMIZER_NAME = "optimizer.safetensors"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def write_checkpoint(
    output_dir: Path,
    *,
    config: PromptTuningConfig,
    prompt: Tensor,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    task: Task,
) -> Path:
    """Write ``checkpoint-N`` (N optimizer steps) in one step: a crash leaves it whole or absent."""
    folder = output_dir / f"checkpoint-{state.global_step}"

    def fill(target: Path) -> None:
        config.save_pretrained(target)
        write_prompt(target, prompt, placement=config.prompt_placement)
        task.save(target)
        moments = {name: value.detach().cpu().contiguous() for name, value in _moments(optimizer).items()}
        (target / OPTIMIZER_NAME).write_bytes(save(moments))
        state.save(target)

    write_folder(folder, fill)
    return folder


def check_checkpoint(
    folder: Path, prompt: Tensor, fingerprint: str, placement: Placement | None = "prefix"
) -> tuple[Tensor, TrainerState]:
    """Read the prompt and the state of a checkpoint that a run with this fingerprint can resume.

    Raises:
        AdapterError: a file of the checkpoint is missing or damaged, or its prompt has the other placement.
        ConfigError: its prompt has another shape, or its run had other rows or options.
    """
    for name in (WEIGHTS_NAME, OPTIMIZER_NAME, STATE_NAME):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} is not a checkpoint to resume from: it has no {name}")
    saved = read_prompt(folder / WEIGHTS_NAME, placement)
    if saved.shape != prompt.shape:
        raise ConfigError(
            f"{folder} holds a prompt of shape {list(saved.shape)}, this run's is {list(prompt.shape)}; "
            "resume with the same num_virtual_tokens and base model"
        )
    state = TrainerState.load(folder)
    if state.fingerprint not in (None, fingerprint):
        raise ConfigError(
            f"{folder} belongs to a run with other training rows or options; resume with the same rows, template, "
            "max_length, seed, batch size, num_virtual_tokens, initial prompt and base model, or start a new run in "
            "another output_dir"
        )
    return saved, state


def read_checkpoint(
    folder: Path,
    prompt: Tensor,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    placement: Placement | None = "prefix",
) -> TrainerState:
    """Load a checkpoint into the prompt ``[P, D]`` and the optimizer; raises the errors of ``check_checkpoint``."""
    saved, state = check_checkpoint(folder, prompt, fingerprint, placement)
    try:
        moments = load_file(folder / OPTIMIZER_NAME)
    except SafetensorError as error:
        raise AdapterError(f"{folder / OPTIMIZER_NAME} is damaged ({error})") from None
    with torch.no_grad():
        prompt.copy_(saved)
    optimizer.state[prompt].update({name: value.to(prompt.device) for name, value in moments.items()})
    if "step" in moments:
        optimizer.state[prompt]["step"] = moments["step"].cpu()  # AdamW keeps its step count on the CPU
    return state


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameter = optimizer.param_groups[0]["params"][0]
    return dict(optimizer.state[parameter])


def checkpoints(output_dir: Path) -> list[Path]:
    """All ``checkpoint-N`` folders, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of ``checkpoint-N``."""
    match = _FOLDER.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def remove_checkpoint(output_dir: Path, step: int) -> None:
    """Delete ``checkpoint-step`` if it exists."""
    shutil.rmtree(output_dir / f"checkpoint-{step}", ignore_errors=True)


def remove_old_checkpoints(output_dir: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond ``limit``, sparing the folder named ``keep`` (the best one)."""
    if limit is None:
        return
    for folder in checkpoints(output_dir)[:-limit]:
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
