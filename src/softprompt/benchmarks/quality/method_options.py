"""Options of the methods other than soft prompts, whose options are those of ``softprompt train``. No torch."""

from __future__ import annotations

from pydantic import Field

from ...config.options import Options


class MethodOptions(Options):
    """A method without options; the base class of the others."""


class InContextOptions(MethodOptions):
    """Few-shot in-context learning."""

    tokens: int = Field(1024, ge=1, description="Maximum number of tokens of instruction and examples together.")


class PeftOptions(MethodOptions):
    """The training loop of PEFT's guide."""

    num_virtual_tokens: int = Field(8, ge=1, description="Number of virtual tokens.")
    num_train_epochs: int = Field(50, ge=1, description="Passes over the training rows.")
    learning_rate: float = Field(3e-2, gt=0, description="Peak learning rate of AdamW; decays linearly.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows per batch.")
    max_length: int = Field(64, ge=1, description="Length to which rows are cut and padded.")


class LoraOptions(MethodOptions):
    """LoRA on the modules that PEFT selects for the model's family (query and value projections in Llama)."""

    r: int = Field(8, ge=1, description="Rank.")
    num_train_epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW; decays linearly.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows per batch.")


class SetfitOptions(MethodOptions):
    """SetFit: contrastive training on pairs of sentences, then logistic regression."""

    num_iterations: int = Field(20, ge=1, description="Pairs of each kind per training row.")
    num_train_epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    per_device_train_batch_size: int = Field(16, ge=1, description="Pairs per batch.")
