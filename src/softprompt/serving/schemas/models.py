"""Models, the adapters that are loaded and unloaded, and the state of the server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from .common import RequestBody


class TaskInfo(BaseModel):
    """The task of an adapter."""

    kind: Literal["classification", "generation"]
    labels: list[str]
    text_columns: list[str]
    template: str
    answers_with: Literal["label", "text"] = Field(description="What /v1/completions returns.")
    num_virtual_tokens: int
    prompt_placement: Literal["prefix", "suffix"]
    linear_probe: bool
    ensemble: int = Field(description="Number of prompts of the ensemble; 0 without one.")


class Model(BaseModel):
    """The base model or an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["base", "softprompt"]
    parent: str | None = Field(None, description="The base model of an adapter.")
    problem: str | None = Field(None, description="Why the adapter's folder cannot be read now.")
    task: TaskInfo | None = None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class NearestToken(BaseModel):
    """A token of the vocabulary and its cosine similarity with a virtual token."""

    token: str
    similarity: float


class AdapterDetails(BaseModel):
    """What a prompt looks like, and how it was trained."""

    name: str
    nearest: list[list[NearestToken]] = Field(description="Nearest tokens of each virtual token.")
    log: list[dict[str, Any]] = Field(description="Rows of log.jsonl.")
    metrics: dict[str, Any] | None = Field(description="metrics.json.")


class LoadRequest(RequestBody):
    """``POST /v1/adapters/load``."""

    name: str = Field(min_length=1, max_length=200)
    path: str = Field(min_length=1, description="The adapter's folder, relative to the server's root of adapters.")


class UnloadRequest(RequestBody):
    """``POST /v1/adapters/unload``."""

    name: str = Field(min_length=1)


class Status(BaseModel):
    """The state of the server."""

    status: Literal["ok", "loading", "draining"]
