"""Adapter configuration with PEFT's names, fields, defaults and file format. Importing it does not import torch.

``adapter_config.json`` is the file that PEFT reads and writes (format: PEFT 0.21). Values that PEFT accepts although
they cannot work (an unknown initialization, zero virtual tokens) are refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import AdapterError, ConfigError
from ..storage.atomic import read_json, write_text
from ..storage.hub import find_file
from ..storage.validation import validated
from ..types import Placement
from ..version import __version__

CONFIG_NAME = "adapter_config.json"
PEFT_FORMAT_VERSION = "0.21.2"
"""The PEFT release whose file format is written."""


class PeftType(str, Enum):
    """The supported adapter types. PEFT has more."""

    PROMPT_TUNING = "PROMPT_TUNING"
    SUFFIX_PROMPT_TUNING = "SUFFIX_PROMPT_TUNING"
    """A suffix prompt, which PEFT does not have: it refuses the file instead of reading it as a prefix."""


class TaskType(str, Enum):
    """PEFT's task types. softprompt supports ``CAUSAL_LM``; the others are needed to read files."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PromptTuningInit(str, Enum):
    """Initial values of the virtual tokens."""

    TEXT = "TEXT"
    """The embeddings of a text, repeated or truncated to ``num_virtual_tokens``."""
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    """The embeddings of vocabulary entries drawn uniformly."""
    RANDOM = "RANDOM"
    """Numbers from the standard normal distribution (PEFT's default)."""


@dataclass
class PeftConfigMixin:
    """Reading and writing ``adapter_config.json``."""

    task_type: str | TaskType | None = None
    peft_type: str | PeftType | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None

    def __post_init__(self) -> None:
        known = [task.value for task in TaskType]
        if self.task_type is not None and self.task_type not in known:
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: {', '.join(known)}."
            )
        if self.peft_version is None:
            self.peft_version = f"{PEFT_FORMAT_VERSION}+softprompt.{__version__}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as a new dictionary (a deep copy; enum members are kept)."""
        return dataclasses.asdict(self)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``adapter_config.json`` into ``save_directory``, which is created.

        Raises:
            AssertionError: ``save_directory`` is an existing file (as in PEFT).
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise AssertionError(f"{folder} is a file; a folder is needed")
        folder.mkdir(parents=True, exist_ok=True)
        values = {k: sorted(v) if isinstance(v, set) else v for k, v in self.to_dict().items()}
        if "auto_mapping_dict" in kwargs:
            values["auto_mapping"] = kwargs["auto_mapping_dict"]
        write_text(folder / CONFIG_NAME, json.dumps(values, indent=2, sort_keys=True))

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """The content of a config file as a dictionary.

        Raises:
            SoftPromptError: the file is missing, not JSON, or implausibly large.
        """
        values = read_json(path_json_file)
        if values.pop("runtime_config", None) is not None:
            warnings.warn("The key `runtime_config` is not part of an adapter and is ignored.", stacklevel=2)
        return values

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftConfig:
        """Read the config of an adapter: a folder, or a repository of the Hub.

        Keyword arguments that are fields are used if the file does not have them; ``revision``, ``token``,
        ``cache_dir`` and ``local_files_only`` are used for the download.

        Raises:
            AdapterError: there is no config.
            ConfigError: its ``peft_type`` or values are not usable.
        """
        path = find_file(str(pretrained_model_name_or_path), CONFIG_NAME, subfolder=subfolder, **kwargs)
        values = cls.from_json_file(path)
        _check_types(values, path)
        if values.get("peft_type") not in (None, *PEFT_TYPE_TO_CONFIG_MAPPING):
            raise UnknownPeftTypeError(f"{pretrained_model_name_or_path} is {_of_type(values['peft_type'])}")
        own = {f.name for f in dataclasses.fields(cls)}
        return cls._from_values({**{k: v for k, v in kwargs.items() if k in own}, **values})

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Build the config class that ``peft_type`` names from keyword arguments."""
        return cls._from_values(kwargs)

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> PeftConfig:
        """Build the class that ``values["peft_type"]`` names; keys from newer releases are dropped, with a warning."""
        chosen = cls if values.get("peft_type") is None else config_class(values["peft_type"])
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(chosen)})
        if unknown:
            if values.get("peft_type") is None:
                raise TypeError(
                    f"The {cls.__name__} config that is trying to be loaded is missing required keys: {{'peft_type'}}."
                )
            warnings.warn(
                f"Unexpected keyword arguments {unknown} for class {chosen.__name__}, these are ignored. "
                "They may come from a newer release.",
                stacklevel=3,
            )
        config = chosen(**{k: v for k, v in values.items() if k not in unknown})
        assert isinstance(config, PeftConfig)
        return config

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the adapter is a prompt."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the adapter is of PEFT's type ADAPTION_PROMPT (never here)."""
        return False


@dataclass
class PeftConfig(PeftConfigMixin):
    """Fields of every adapter."""

    base_model_name_or_path: str | None = None
    revision: str | None = None
    """Revision of the *base* model."""
    inference_mode: bool = False


@dataclass
class PromptLearningConfig(PeftConfig):
    """Fields of every prompt; ``None`` fields are set from the base model when it is wrapped."""

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.num_virtual_tokens
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise ConfigError(f"num_virtual_tokens must be an integer of at least 1, not {n!r}")

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the adapter is a prompt."""
        return True


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Configuration of prompt tuning (Lester et al., 2021, arXiv:2104.08691).

    Args (beyond PEFT's common fields):
        num_virtual_tokens: P of the learned matrix ``[P, D]``.
        prompt_tuning_init: ``TEXT``, ``SAMPLE_VOCAB`` or ``RANDOM``.
        prompt_tuning_init_text: for ``TEXT``: the text whose embeddings are the initial values.
        tokenizer_name_or_path: the tokenizer for that text.
        tokenizer_kwargs: passed to ``AutoTokenizer.from_pretrained``, except ``trust_remote_code``.
        prompt_placement: ``prefix`` (PEFT's, the default) or ``suffix``: text, prompt, label. It determines
            ``peft_type``, and is not written for a prefix, whose file is exactly PEFT's.

    Raises:
        ConfigError: a value is invalid; a ``ValueError`` too.
    """

    prompt_tuning_init: str | PromptTuningInit = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = field(default=None)
    prompt_placement: Placement | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle_placement()
        known = [init.value for init in PromptTuningInit]
        if self.prompt_tuning_init not in known:
            given = getattr(self.prompt_tuning_init, "value", self.prompt_tuning_init)
            raise ConfigError(f"prompt_tuning_init must be one of {', '.join(known)}, not {given!r}")
        is_text = self.prompt_tuning_init == PromptTuningInit.TEXT
        if is_text and not self.tokenizer_name_or_path:
            raise ConfigError(
                f"When prompt_tuning_init='TEXT', tokenizer_name_or_path can't be {self.tokenizer_name_or_path}"
            )
        if is_text and self.prompt_tuning_init_text is None:
            raise ConfigError(
                f"When prompt_tuning_init='TEXT', prompt_tuning_init_text can't be {self.prompt_tuning_init_text}"
            )
        if self.tokenizer_kwargs and not is_text:
            raise ConfigError("tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.")

    @property
    def placement(self) -> Placement:
        """``prompt_placement``, which ``__post_init__`` has set."""
        return self.prompt_placement or "prefix"

    def _settle_placement(self) -> None:
        """Check that ``peft_type`` and ``prompt_placement`` agree, and set either from the other."""
        implied = _PLACEMENTS.get(str(getattr(self.peft_type, "value", self.peft_type)))
        if self.prompt_placement is None:
            self.prompt_placement = implied or "prefix"
        if self.prompt_placement not in _PLACEMENTS.values():
            raise ConfigError(f"prompt_placement must be prefix or suffix, not {self.prompt_placement!r}")
        if implied not in (None, self.prompt_placement):
            raise ConfigError(
                f"prompt_placement {self.prompt_placement} contradicts peft_type "
                f"{getattr(self.peft_type, 'value', self.peft_type)}; leave peft_type out"
            )
        self.peft_type = next(PeftType(name) for name, where in _PLACEMENTS.items() if where == self.prompt_placement)

    def to_dict(self) -> dict[str, Any]:
        """All fields as a new dictionary; only PEFT's fields for a prefix."""
        values = super().to_dict()
        if self.prompt_placement == "prefix":
            del values["prompt_placement"]
        return values


_PLACEMENTS: dict[str, Placement] = {
    PeftType.PROMPT_TUNING.value: "prefix",
    PeftType.SUFFIX_PROMPT_TUNING.value: "suffix",
}

PEFT_TYPE_TO_CONFIG_MAPPING: dict[str, type[PeftConfig]] = {each.value: PromptTuningConfig for each in PeftType}


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """Build a config from a dictionary whose ``peft_type`` names the class.

    Raises:
        KeyError: ``peft_type`` is missing or unknown.
        TypeError: a key is not a field of that class.
    """
    return PEFT_TYPE_TO_CONFIG_MAPPING[str(getattr(config_dict["peft_type"], "value", config_dict["peft_type"]))](
        **config_dict
    )


def _check_types(values: dict[str, Any], path: Path) -> None:
    """Check the types of the fields in a file.

    Raises:
        ConfigError: a field has the wrong type.
    """
    from pydantic import create_model

    fields: Any = {name: (_in_json(kind), None) for name, kind in get_type_hints(PromptTuningConfig).items()}
    validated(create_model("AdapterConfig", **fields), values, path, ConfigError)


def _in_json(kind: Any) -> Any:
    """The type of a field in a file, where members of an ``Enum`` are texts."""
    return str | None if any(isinstance(each, type) and issubclass(each, Enum) for each in get_args(kind)) else kind


def config_class(peft_type: Any) -> type[PeftConfig]:
    """The config class of an adapter type, given as a string or an enum member.

    Raises:
        UnknownPeftTypeError: softprompt does not support the type.
    """
    name = str(getattr(peft_type, "value", peft_type))
    if name not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UnknownPeftTypeError(f"this is {_of_type(name)}")
    return PEFT_TYPE_TO_CONFIG_MAPPING[name]


def _of_type(peft_type: str) -> str:
    known = " and ".join(PEFT_TYPE_TO_CONFIG_MAPPING)
    return f"a {peft_type} adapter; softprompt supports {known}; use PEFT for this one"


class UnknownPeftTypeError(ConfigError, AdapterError, KeyError):
    """An unsupported adapter type (a ``KeyError`` too, as in PEFT)."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])
