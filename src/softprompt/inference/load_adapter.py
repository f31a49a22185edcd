"""Loading an adapter with its base model: prompt, linear probe, ensemble, task and tokenizer, checked for fit."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config.adapter_config import CONFIG_NAME, PeftConfig, PromptTuningConfig
from ..config.compatibility import check_fit, check_supported, read_config
from ..config.options import ModelOptions
from ..data.task import Task
from ..data.tokenize import Encoder, default_end_token_id
from ..engine.runner import ModelRunner
from ..engine.selfcheck import check_unlisted
from ..errors import AdapterMismatchError, ConfigError
from ..models.families import base_facts, context_length
from ..models.loading import load_base
from ..models.vocabulary import grow, own_tokenizer, restore
from ..storage.adapter import START_NAME, WEIGHTS_NAME, find_weights, read_prompt
from ..storage.record import ENSEMBLE_NAME, OLD_PROBE_NAME, PROBE_NAME
from .adapter_files import RAW_TASK, check_same_base, fetch_adapter, find_optional, read_task
from .classifier import Classes, classes_of
from .ensemble import Ensemble
from .probe import LinearProbe
from .prompted import PromptedModel


@dataclass(frozen=True, eq=False, repr=False)
class LoadedAdapter:
    """An adapter, loaded with its base model.

    Attributes:
        name: folder or Hub id of the adapter.
        model: base model and prompt.
        tokenizer: the base model's; or the adapter's own, if that has more tokens.
        config: content of ``adapter_config.json``.
        saved_task: content of ``task.json``; ``None`` for an adapter without one, such as PEFT writes.
        linear_probe, ensemble: ``None`` if the adapter has none.
    """

    name: str
    model: PromptedModel
    tokenizer: Any
    config: PromptTuningConfig
    saved_task: Task | None
    linear_probe: LinearProbe | None = None
    ensemble: Ensemble | None = None

    @property
    def task(self) -> Task:
        """How rows become text, and the labels; without ``task.json``, generation with the text as the input."""
        if self.saved_task is not None:
            return self.saved_task
        return replace(RAW_TASK, end_token_id=default_end_token_id(self.tokenizer))

    @property
    def context_length(self) -> int | None:
        """Most tokens that the base model reads, virtual ones included; ``None`` where there is no limit."""
        return context_length(self.model.base.config)

    def classes(self, encoder: Encoder) -> Classes | None:
        """The classes of an encoder's task, with the adapter's linear probe and ensemble; ``None`` for generation."""
        return classes_of(encoder.task, encoder, self.linear_probe, self.ensemble)

    def encoder(self, task: Task, *, room_for_answer: int = 0) -> Encoder:
        """An encoder of rows for this model; see ``Encoder``."""
        return Encoder(
            self.tokenizer,
            task,
            num_virtual_tokens=len(self.model.prompt),
            context_length=self.context_length,
            room_for_answer=room_for_answer,
        )


def load_adapter(adapter: str, options: ModelOptions) -> LoadedAdapter:
    """Load an adapter (a folder or a Hub id) and its base model.

    Args:
        options: how to load the base model. ``model_name_or_path`` counts if it is set explicitly; otherwise the base
            model that the adapter names is loaded.

    Raises:
        AdapterError: the adapter is missing, damaged or does not fit the base model.
        BaseModelError: the base model cannot be found or loaded.
        ConfigError: the adapter names no base model, and none is given.
    """
    config = fetch_adapter(adapter)
    given = "model_name_or_path" in options.model_fields_set
    if not given:
        options = _options_of(adapter, config, options)
    base = load_base(options)
    model, tokenizer = base.model, own_tokenizer(adapter, trust_remote_code=options.trust_remote_code)
    grow(model, find_weights(adapter), tokenizer)
    if tokenizer is None or len(tokenizer) <= len(base.tokenizer):
        tokenizer = base.tokenizer
    if given and config.base_model_name_or_path not in (None, base.name):
        advice = "leave --model_name_or_path out to use that one"
        check_same_base(adapter, str(config.base_model_name_or_path), base.name, advice)
    restore(model, find_weights(adapter), adapter)
    check_unlisted(model, base.name)
    return _loaded(adapter, ModelRunner(model), tokenizer, config)


def load_onto(runner: ModelRunner, tokenizer: Any, adapter: str) -> LoadedAdapter:
    """Load an adapter onto a base model that it shares with others, which must not change.

    Args:
        runner: owns the base model.
        tokenizer: of the base model.

    Raises:
        AdapterError: the adapter is missing, damaged, for another base model, or would change the base model.
    """
    config, base = fetch_adapter(adapter), runner.base
    if config.base_model_name_or_path not in (None, base.name_or_path):
        advice = "a library has one base model; open another library for this adapter"
        check_same_base(adapter, str(config.base_model_name_or_path), base.name_or_path, advice)
    own = own_tokenizer(adapter)
    if own is not None and len(own) > len(tokenizer):
        raise AdapterMismatchError(
            f"{adapter} adds tokens to the vocabulary, which other adapters of the base model were not trained with; "
            "load it alone"
        )
    restore(base, find_weights(adapter), adapter, shared=True)
    return _loaded(adapter, runner, tokenizer, config)


def _loaded(adapter: str, runner: ModelRunner, tokenizer: Any, config: PromptTuningConfig) -> LoadedAdapter:
    """An adapter whose base model is ready for it."""
    base = runner.base
    config, prompt = read_adapter(base, adapter, config)
    prompted = PromptedModel(runner, prompt.to(base.device, torch.float32), config.placement)
    task = read_task(adapter)
    probe, ensemble = read_probe(adapter, task, base), read_ensemble(adapter, prompt.shape[1])
    return LoadedAdapter(adapter, prompted, tokenizer, config, task, probe, ensemble)


def _options_of(adapter: str, config: PromptTuningConfig, options: ModelOptions) -> ModelOptions:
    """The options with the base model that the adapter names.

    Raises:
        ConfigError: it names none.
    """
    name, revision = config.base_model_name_or_path, options.revision or config.revision
    if not name:
        raise ConfigError(f"{adapter} does not name its base model; give it with --model_name_or_path")
    return options.model_copy(update={"model_name_or_path": name, "revision": revision})


def read_adapter(
    base: PreTrainedModel, adapter: str | os.PathLike[str], config: PeftConfig | None = None, **hub: Any
) -> tuple[PromptTuningConfig, Tensor]:
    """Config and prompt ``[P, D]`` of an adapter, checked against the base model.

    Args:
        adapter: a folder or a Hub id.
        config: use this config instead of the adapter's.
        **hub: ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        AdapterError: there is no adapter, it is damaged or unsafe, or it does not fit the base model.
    """
    found = check_supported(config, str(adapter)) if config else read_config(adapter, **hub)
    facts = base_facts(base)
    check_fit(found, facts, str(adapter))
    prompt = read_prompt(find_weights(adapter, **hub), found.prompt_placement)
    if prompt.shape[1] != facts["token_dim"]:
        raise AdapterMismatchError(
            f"{adapter}: its virtual tokens have size {prompt.shape[1]}, the base model's embeddings have size "
            f"{facts['token_dim']}; load the base model it was trained on"
        )
    if found.num_virtual_tokens != prompt.shape[0]:
        raise AdapterMismatchError(
            f"{adapter}: size mismatch: {CONFIG_NAME} says {found.num_virtual_tokens} virtual tokens, "
            f"{WEIGHTS_NAME} has {prompt.shape[0]}"
        )
    return found, prompt


def read_probe(adapter: str, task: Task | None, base: PreTrainedModel) -> LinearProbe | None:
    """The linear probe of an adapter, ``None`` if it has none.

    Raises:
        AdapterError: it is damaged, or does not fit the task and the base model.
    """
    path = find_optional(adapter, PROBE_NAME) or find_optional(adapter, OLD_PROBE_NAME)
    if path is None:
        return None
    config = base.config.get_text_config()
    return LinearProbe.read(path, len(task.labels) if task else 0, config.num_hidden_layers, config.hidden_size)


def read_ensemble(adapter: str, embedding_size: int) -> Ensemble | None:
    """The ensemble of an adapter, ``None`` if it has none.

    Args:
        embedding_size: D of the base model's input embeddings.

    Raises:
        AdapterError: it is damaged, or does not fit the base model.
    """
    path = find_optional(adapter, ENSEMBLE_NAME)
    return None if path is None else Ensemble.read(path, embedding_size)


def read_initial_prompt(adapter: str) -> Tensor | None:
    """The prompt ``[P, D]`` that training started from, ``None`` if it was not kept."""
    path = find_optional(adapter, START_NAME)
    return None if path is None else read_prompt(path)
