"""An adapter ready for use: its base model, prompt, task and encoder, from one name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.adapter_config import CONFIG_NAME, PeftConfig, PromptTuningConfig
from ..config.options import ModelOptions
from ..data.task import TASK_NAME, Task
from ..data.tokenize import Encoder
from ..errors import AdapterError, ConfigError
from ..storage.hub import FileAbsentError, find_file, looks_like_path, snapshot_adapter

if TYPE_CHECKING:  # read_task serves without torch, so that a command can check its data before it waits for that
    from ..peft.model import PeftModelForCausalLM
    from .ensemble import Ensemble
    from .evaluate import Classes
    from .probe import LinearProbe


@dataclass(frozen=True)
class Prompted:
    """A base model under a trained prompt."""

    model: PeftModelForCausalLM
    tokenizer: Any
    config: PromptTuningConfig
    task: Task | None  # None for an adapter that does not say, e.g. one made by PEFT
    linear_probe: LinearProbe | None = None
    ensemble: Ensemble | None = None

    @property
    def context_length(self) -> int | None:
        """The most positions of the base model; ``None`` where there is no bound."""
        from ..models.families import context_length

        return context_length(self.model.base_model.config)

    def classes(self, encoder: Encoder) -> Classes | None:
        """The classes of an encoder's task, with all of the adapter that decides between them."""
        from .evaluate import classes_of

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


def load_prompted(adapter: str, options: ModelOptions, *, model_given: bool) -> Prompted:
    """Load an adapter (a folder or a Hub id) and the base model it was trained on.

    Args:
        options: how to load the base; its ``model_name_or_path`` counts when ``model_given``, otherwise
            the base that the adapter names is taken.

    Raises:
        AdapterError: the adapter is missing, damaged or does not fit the base model.
        BaseModelError: the base model cannot be had.
    """
    from ..config.compatibility import read_config
    from ..models.loading import load_base
    from ..models.vocabulary import grow, own_tokenizer
    from ..peft.model import PeftModel
    from ..storage.adapter import find_weights

    config = read_config(adapter)
    if not model_given:
        if not config.base_model_name_or_path:
            raise ConfigError(f"{adapter} does not say which base model it is for; give --model_name_or_path")
        revision = options.revision or config.revision
        options = options.model_copy(
            update={"model_name_or_path": config.base_model_name_or_path, "revision": revision}
        )
    base = load_base(options)
    own = own_tokenizer(adapter, trust_remote_code=options.trust_remote_code)
    grow(base.model, find_weights(adapter), own)
    if own is not None and len(own) > len(base.tokenizer):
        base = replace(base, tokenizer=own)
    if model_given and config.base_model_name_or_path not in (None, base.name):
        check_same_base(adapter, str(config.base_model_name_or_path), base.name)
    model = PeftModel.from_pretrained(base.model, adapter)
    task = read_task(adapter)
    linear_probe, ensemble = read_probe(adapter, task, model), read_ensemble(adapter, model)
    return Prompted(model, base.tokenizer, config, task, linear_probe, ensemble)


def check_same_base(adapter: str, trained_on: str, given: str) -> None:
    """Refuse a base model of another name, unless both are the same folder or end in the same name.

    Raises:
        AdapterError: the names differ.
    """
    if Path(trained_on).name.lower() != Path(given).name.lower():
        raise AdapterError(
            f"{adapter} was trained on {trained_on}, not on {given}; a prompt means nothing to another model. "
            "Leave --model_name_or_path out to use the right one"
        )


def fetch_adapter(adapter: str) -> None:
    """Check that an adapter exists and is of a supported type; one on the Hub is downloaded into the cache.

    Raises:
        AdapterError: there is no such adapter, it is of another type, or the Hub cannot be reached and it is not
            cached.
    """
    if not Path(adapter).exists() and not looks_like_path(adapter):
        snapshot_adapter(adapter, [CONFIG_NAME, TASK_NAME, "*.safetensors"])
    PeftConfig.from_pretrained(adapter)


def read_task(adapter: str) -> Task | None:
    """The task of an adapter, ``None`` when it does not say."""
    try:
        return Task.read(find_file(adapter, TASK_NAME))
    except FileAbsentError:
        return None


def read_probe(adapter: str, task: Task | None, model: PeftModelForCausalLM) -> LinearProbe | None:
    """The read-out of an adapter, ``None`` when it has none.

    Raises:
        AdapterError: it is damaged, or does not fit task and model.
    """
    from ..storage.record import OLD_PROBE_NAME, PROBE_NAME
    from .probe import LinearProbe

    path = _find_optional(adapter, PROBE_NAME) or _find_optional(adapter, OLD_PROBE_NAME)
    if path is None:
        return None
    num_classes = len(task.labels) if task is not None else 0
    config = model.base_model.config.get_text_config()
    return LinearProbe.read(path, num_classes, config.num_hidden_layers, config.hidden_size)


def read_ensemble(adapter: str, model: PeftModelForCausalLM) -> Ensemble | None:
    """The prompts that answer in place of an adapter's own, ``None`` when it has none.

    Raises:
        AdapterError: they are damaged, or do not fit the model.
    """
    from ..storage.record import ENSEMBLE_NAME
    from .ensemble import Ensemble

    path = _find_optional(adapter, ENSEMBLE_NAME)
    if path is None:
        return None
    return Ensemble.read(path, model.prompt.shape[1])


def _find_optional(adapter: str, name: str) -> Path | None:
    """Path of a file of an adapter, ``None`` when there is none."""
    try:
        return find_file(adapter, name)
    except FileAbsentError:
        return None


def read_start(adapter: str) -> Any:
    """The prompt ``[P, D]`` that training started from, ``None`` when it was not kept."""
    from ..storage.adapter import START_NAME, read_prompt

    try:
        return read_prompt(find_file(adapter, START_NAME))
    except FileAbsentError:
        return None
