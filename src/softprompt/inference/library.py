"""Many adapters on one base model: each task by its name, and rows of different tasks in one run of the model."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from ..config.adapter_config import CONFIG_NAME
from ..config.options import ModelOptions
from ..data.in_memory import Rows
from ..data.tokenize import Encoder
from ..engine.runner import ModelRunner
from ..engine.selfcheck import check_unlisted
from ..errors import AdapterError, ConfigError, ContextLengthError, SoftPromptError, UnknownAdapterError
from ..models.families import context_length
from ..models.loading import Base, load_base
from ..storage.atomic import expand
from ..types import Row
from .adapter_files import RAW_TASK, Adapters, checked_name, named_adapters
from .answer import Question, answer
from .library_adapter import Adapter, Fingerprint, age, fingerprint
from .load_adapter import load_adapter, load_onto
from .mixed_rows import PlacedPrompt
from .pipeline import Prediction, model_options
from .prompt_cache import PromptCache

PROMPT_MEMORY = 256 << 20
"""Bytes of prefilled prompts: those of 8 virtual tokens take 0.4 MB each in SmolLM2-135M, float32."""
SETTLE_SECONDS = 1.0
"""A changed folder is read again once it has not changed for so long, so that a half-written one is not read."""


@dataclass(eq=False)
class _Slot:
    """A name in the library.

    Attributes:
        source: folder or Hub id.
        adapter: the last version that could be loaded.
        problem: why the newest version could not be loaded.
        state: of the files of the newest version that was read, or tried.
    """

    name: str
    source: str
    adapter: Adapter | None = None
    problem: str | None = None
    state: Fingerprint = ()
    lock: threading.Lock = field(default_factory=threading.Lock)


class PromptLibrary:
    """Adapters by name, on one base model that they share.

    The library owns the base model, which must not change while it is used. Prefilled prompts are kept up to a bound.
    A folder that changes on disk is read again; if it is damaged, the old version stays in use, and ``problems``
    reports it. Any number of threads may use a library.

    Args:
        adapters: folders or Hub ids by name; or a list of them, as ``NAME=DIR`` or named by the last part of the path.
        adapter_dir: a folder whose subfolders are adapters, named like these. A damaged one is skipped and reported in
            ``problems``; one that is added later is found when it is asked for.
        prompt_memory: bytes for prefilled prompts.
        model_name_or_path, revision, dtype, device, attn_implementation, trust_remote_code: the base model, as for
            ``softprompt.load``; by default the one that the first adapter names.

    Attributes:
        runner: owns the base model.
        tokenizer: of the base model.
        base_name: name of the base model.

    Raises:
        AdapterError: an adapter of ``adapters`` is missing, damaged, or for another base model.
        BaseModelError: the base model cannot be found or loaded.
        ConfigError: there is neither an adapter nor a base model, two adapters have one name, or an option is invalid.
    """

    def __init__(
        self,
        adapters: Adapters = (),
        *,
        adapter_dir: str | os.PathLike[str] | None = None,
        prompt_memory: int = PROMPT_MEMORY,
        model_name_or_path: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        dtype: Any = None,
        device: Any = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        options = model_options(
            model_name_or_path=model_name_or_path,
            revision=revision,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        self._open(named_adapters(adapters), adapter_dir, prompt_memory, options)

    @classmethod
    def from_options(
        cls,
        adapters: Adapters,
        options: ModelOptions,
        *,
        adapter_dir: str | os.PathLike[str] | None = None,
        prompt_memory: int = PROMPT_MEMORY,
    ) -> PromptLibrary:
        """A library whose base model is given by an options object."""
        library = cls.__new__(cls)
        library._open(named_adapters(adapters), adapter_dir, prompt_memory, options)
        return library

    @classmethod
    def on_base(cls, base: Base, adapters: Adapters, *, prompt_memory: int = PROMPT_MEMORY) -> PromptLibrary:
        """A library on a base model in memory, which is frozen and in ``eval()``."""
        library = cls.__new__(cls)
        library._open(named_adapters(adapters), None, prompt_memory, ModelOptions(), base)
        return library

    def _open(
        self,
        adapters: Mapping[str, str],
        folder: str | os.PathLike[str] | None,
        memory: int,
        options: ModelOptions,
        base: Base | None = None,
    ) -> None:
        self._folder = None if folder is None else Path(expand(os.fspath(folder)))
        self._slots = {name: _Slot(name, source) for name, source in adapters.items()}
        self._lock = threading.Lock()
        for name in self._in_folder():
            if name in self._slots:
                raise ConfigError(f"two adapters are named {name!r}: {self._slots[name].source} and {self._path(name)}")
            self._slots[name] = _Slot(name, self._path(name))
        if base is None:
            self.runner, self.tokenizer = self._load_base(options, required=set(adapters))
        else:
            self.runner, self.tokenizer = ModelRunner(base.model), base.tokenizer
        self.base_name: str = self.runner.base.name_or_path
        self._check_free(*self._slots)
        self._prompts = PromptCache(self.runner, memory)
        self._raw_encoder = Encoder(self.tokenizer, RAW_TASK, num_virtual_tokens=0, context_length=None)
        for name, slot in self._slots.items():
            if slot.adapter is None and slot.problem is None:
                self._read(slot)
            if slot.problem and name in adapters:
                raise AdapterError(slot.problem)

    def _load_base(self, options: ModelOptions, required: set[str]) -> tuple[ModelRunner, Any]:
        """The base model; with the first adapter that can be loaded, which may add tokens to it."""
        for name, slot in self._slots.items():
            state = fingerprint(slot.source)
            try:
                loaded = load_adapter(slot.source, options)
            except AdapterError as error:
                if name in required:
                    raise
                slot.problem, slot.state = str(error), state
                continue
            slot.adapter, slot.state = Adapter(name, loaded), state
            return loaded.model.runner, loaded.tokenizer
        if "model_name_or_path" not in options.model_fields_set:
            problems = "".join(f"; {slot.problem}" for slot in self._slots.values())
            raise ConfigError(f"no adapter to load, and no base model (model_name_or_path) is given{problems}")
        base = load_base(options)
        check_unlisted(base.model, base.name)
        return ModelRunner(base.model), base.tokenizer

    # ---- adapters by name

    @property
    def names(self) -> list[str]:
        """Names of the adapters, those that cannot be loaded included."""
        return sorted({*self._slots, *self._in_folder()})

    @property
    def problems(self) -> dict[str, str]:
        """For each adapter whose files cannot be loaded: why. An older version of it may still be in use."""
        return {name: slot.problem for name, slot in sorted(self._slots.items()) if slot.problem}

    @property
    def context_length(self) -> int | None:
        """Most tokens that the base model reads, virtual ones included; ``None`` where there is no limit."""
        return context_length(self.runner.base.config)

    def get(self, name: str) -> Adapter:
        """The current version of an adapter.

        Raises:
            UnknownAdapterError: there is none of this name.
            AdapterError: it could never be loaded.
        """
        slot = self._slots.get(name) or self._added(name)
        if fingerprint(slot.source) != slot.state and slot.lock.acquire(blocking=slot.adapter is None):
            try:
                self._read(slot, settle=SETTLE_SECONDS)
            finally:
                slot.lock.release()
        if slot.adapter is None:
            raise AdapterError(slot.problem or f"the adapter {name!r} is being written; try again")
        return slot.adapter

    def add(self, name: str, adapter: str | os.PathLike[str]) -> Adapter:
        """Load an adapter, or another one under the same name.

        Raises:
            AdapterError: it is missing, damaged, or for another base model; the library is unchanged.
        """
        self._check_free(name)
        slot = _Slot(checked_name(name), expand(os.fspath(adapter)))
        self._read(slot)
        if slot.adapter is None:
            raise AdapterError(slot.problem)
        with self._lock:
            old = self._slots.get(name)
            self._slots[name] = slot
        self._forget(old)
        return slot.adapter

    def remove(self, name: str) -> None:
        """Unload an adapter; calls that use it finish.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        with self._lock:
            slot = self._slots.pop(name, None)
        if slot is None:
            raise self._unknown(name)
        self._forget(slot)

    def prompt(self, adapter: Adapter) -> PlacedPrompt:
        """The prompt of an adapter, prefilled if it is a prefix."""
        return self._prompts.get(adapter.loaded.model)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, texts: str | Mapping[str, Any], adapter: str
    ) -> Prediction | str: ...
    @overload
    def predict(self, texts: Rows, adapter: str | Sequence[str]) -> list[Prediction | str]: ...
    def predict(self, texts: Any, adapter: str | Sequence[str]) -> Any:
        """Predict the label of each text; adapters of generation tasks generate a text, greedily.

        Args:
            texts: one text, or several; a dictionary of columns stands for a text. All run together.
            adapter: the name of an adapter, or a name for each text.

        Returns:
            A ``Prediction`` or a string for one text, a list of them for several.

        Raises:
            UnknownAdapterError: there is no adapter of this name.
            ConfigError: the numbers of texts and names differ.
            DataError: a text is empty, or a column is missing.
        """
        single = isinstance(texts, (str, Mapping))
        given = [texts] if single else list(texts)
        names = [adapter] * len(given) if isinstance(adapter, str) else list(adapter)
        if len(names) != len(given):
            raise ConfigError(f"there are {len(given)} texts, but {len(names)} adapter names; give one per text")
        found = self._answers(list(zip(names, given, (f"row {n + 1}" for n in range(len(given))), strict=True)))
        return found[0] if single else found

    def predict_all(
        self, text: str | Mapping[str, Any], adapters: Sequence[str] | None = None
    ) -> dict[str, Prediction | str]:
        """Predictions of several adapters for one text. Suffix prompts share the computation of the text.

        Args:
            text: a text, or a dictionary of columns.
            adapters: their names; all by default.

        Raises:
            UnknownAdapterError, DataError: as for ``predict``.
        """
        names = self.names if adapters is None else list(adapters)
        return dict(zip(names, self._answers([(name, text, "the text") for name in names]), strict=True))

    def _answers(self, asked: Sequence[tuple[str, Any, str]]) -> list[Prediction | str]:
        """Answers to names of adapters, texts, and the origins of the texts."""
        adapters = {name: self.get(name) for name, *_ in asked}  # one version of each in a call
        questions = []
        for name, given, where in asked:
            adapter = adapters[name]
            example = adapter.encode(given, where, max_new_tokens=0 if adapter.classes else adapter.max_new_tokens)
            questions.append(Question(adapter, self.prompt(adapter), example))
        return answer(self.runner, questions)

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """A text as it is: without a template, with the tokens that the tokenizer puts before a text. It is not cut."""
        return self._raw_encoder.encode(Row({"text": text}, "the text"), with_label=False).input_ids

    def _check_free(self, *names: str) -> None:
        if self.base_name in names:
            raise ConfigError(f"the name {self.base_name!r} is that of the base model; give the adapter another one")

    def check_length(self, num_tokens: int, max_new_tokens: int, adapter: Adapter | None = None) -> None:
        """Check that a text and its continuation fit into the context.

        Raises:
            ContextLengthError: they do not.
        """
        virtual, limit = (0 if adapter is None else len(adapter.loaded.model.prompt)), self.context_length
        if limit is not None and virtual + num_tokens + max_new_tokens > limit:
            raise ContextLengthError(
                f"the base model's context is {limit} tokens; the text has {num_tokens}, the prompt {virtual}, and "
                f"{max_new_tokens} are to be generated: shorten the text, or generate fewer"
            )

    # ---- reading

    def _read(self, slot: _Slot, settle: float = 0.0) -> None:
        """Read an adapter's files, unless they changed within the last ``settle`` seconds."""
        state = fingerprint(slot.source)
        if state == slot.state and (slot.adapter or slot.problem):
            return
        if age(state) < settle:
            return
        old = slot.adapter
        try:
            slot.adapter = Adapter(slot.name, load_onto(self.runner, self.tokenizer, slot.source))
            slot.problem = None
        except SoftPromptError as error:
            slot.problem = str(error)
        slot.state = state
        if old is not None and old is not slot.adapter:
            self._prompts.drop(old.loaded.model)

    def _forget(self, slot: _Slot | None) -> None:
        if slot is not None and slot.adapter is not None:
            self._prompts.drop(slot.adapter.loaded.model)

    def _in_folder(self) -> list[str]:
        """Names of the subfolders of ``adapter_dir`` that are adapters."""
        if self._folder is None:
            return []
        if not self._folder.is_dir():
            raise ConfigError(f"the folder of adapters {self._folder} does not exist")
        return sorted(path.parent.name for path in self._folder.glob(f"*/{CONFIG_NAME}"))

    def _path(self, name: str) -> str:
        return str(Path(self._folder or "", name))

    def _added(self, name: str) -> _Slot:
        """The slot of an adapter that was added to ``adapter_dir`` since the library was opened."""
        if name not in self._in_folder():
            raise self._unknown(name)
        with self._lock:
            return self._slots.setdefault(name, _Slot(name, self._path(name)))

    def _unknown(self, name: str) -> UnknownAdapterError:
        return UnknownAdapterError(f"there is no adapter {name!r}; there are: {', '.join(self.names) or 'none'}")
