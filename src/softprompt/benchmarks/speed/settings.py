"""The options of ``softprompt benchmark speed``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.options import DataOptions, ModelOptions


class SpeedOptions(ModelOptions, DataOptions):
    """Options of a speed measurement."""

    against: Literal["peft", "none"] = Field("peft", description="none measures softprompt only.")
    shape: str | None = Field(None, description="Random weights of a known shape instead of a model: bloomz-560m.")
    num_virtual_tokens: int = Field(8, ge=1, description="Number of virtual tokens.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows per batch.")
    concurrency: int = Field(8, ge=1, description="Requests in flight, for serve.")
    text_tokens: int | None = Field(None, ge=1, description="Build texts of exactly this many tokens from the rows.")
    rounds: int = Field(7, ge=1, description="Turns of each implementation; medians are compared.")
    num_threads: int = Field(2, ge=1, description="CPU threads of every implementation.")
    max_length: int | None = Field(64, ge=1, description="Length to which the guide pads; longer rows are truncated.")
    memory: bool = Field(True, description="Also measure peak memory, each implementation in its own process.")
