"""The options of ``softprompt bench``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.options import DataOptions, ModelOptions


class BenchOptions(ModelOptions, DataOptions):
    """What is measured."""

    against: Literal["peft", "none"] = Field("peft", description="none leaves out PEFT's sides and the drop-in one.")
    shape: str | None = Field(None, description="Random weights of a known shape instead of a model: bloomz-560m.")
    num_virtual_tokens: int = Field(8, ge=1, description="Rows of the prompt.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of a batch.")
    text_tokens: int | None = Field(None, ge=1, description="Texts of exactly so many tokens, made of the rows.")
    rounds: int = Field(7, ge=1, description="Times that each side takes its turn; the medians count.")
    num_threads: int = Field(2, ge=1, description="CPU threads, the same for all.")
    max_length: int | None = Field(64, ge=1, description="Length that the guide pads to; longer rows are cut.")
    memory: bool = Field(True, description="Measure the peak memory of each side, in a process of its own.")
