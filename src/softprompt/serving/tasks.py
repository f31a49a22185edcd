"""What an adapter does: its task as clients see it, and its texts as token ids."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ..config.yaml_file import read_yaml
from ..data.tokenize import default_end_token_id
from ..errors import ConfigError
from ..inference.library import PromptLibrary
from ..inference.library_adapter import Adapter
from ..inference.predict import MAX_NEW_TOKENS
from ..storage.record import OPTIONS_NAME
from ..types import Example
from .errors import bad_request

ADAPTERS_KEPT = 1024


@functools.lru_cache(ADAPTERS_KEPT)
def answers_with(adapter: Adapter) -> Literal["label", "text"]:
    """What an adapter answers a completion with.

    A classification adapter writes its label only if it was trained on the label's tokens, and has neither a linear
    probe nor an ensemble. Otherwise its answer is the most probable label.
    """
    loaded = adapter.loaded
    if not adapter.task.is_classification:
        return "text"
    writes = loaded.linear_probe is None and loaded.ensemble is None and _objective(loaded.name) == "language_modeling"
    return "text" if writes else "label"


def _objective(folder: str) -> str | None:
    """The objective that an adapter in a folder was trained with; ``None`` if it is not recorded there."""
    with suppress(ConfigError):
        if Path(folder).is_dir():
            return str(read_yaml(Path(folder, OPTIONS_NAME)).get("objective"))
    return None


def encode_for_label(library: PromptLibrary, adapter: Adapter, text: str) -> Example:
    """A text that is not put into the template; the answer prefix follows it, unless it is there.

    Raises:
        ContextLengthError: it does not fit the context.
    """
    ids, prefix = library.encode_raw(text), _answer_prefix_ids(adapter)
    ids = ids if not prefix or ids[-len(prefix) :] == prefix else ids + prefix
    library.check_length(len(ids), _room_for_label(adapter), adapter)
    return Example(ids, ())


@functools.lru_cache(ADAPTERS_KEPT)
def _answer_prefix_ids(adapter: Adapter) -> tuple[int, ...]:
    return adapter.loaded.encoder(adapter.task).answer_prefix_ids


def end_token_ids(library: PromptLibrary, adapter: Adapter | None, *, chat: bool = False) -> tuple[int, ...]:
    """Tokens that end a completion: those of the task; without a task, and in a chat, those of the base model."""
    ids = set[int | None]()
    if adapter is not None:
        ids.add(adapter.task.end_token_id)
    if adapter is None or chat:
        found = library.runner.base.generation_config.eos_token_id
        ids |= {default_end_token_id(library.tokenizer), *(found if isinstance(found, list) else [found])}
    return tuple(sorted(each for each in ids if each is not None))


def room_for_answer(
    library: PromptLibrary, adapter: Adapter | None, num_tokens: int, asked: int | None, most: int
) -> int:
    """Number of tokens to generate after a text of ``num_tokens``.

    Args:
        asked: tokens that the client asks for; ``None`` for the default, or what the context has room for.
        most: tokens that a completion may have.

    Raises:
        ApiError: the client asks for too many, or there is nothing to continue.
        ContextLengthError: the context has no room for them.
    """
    if asked is not None and asked > most:
        raise bad_request(f"max_tokens is {asked}; this server allows at most {most}", "max_tokens")
    virtual = 0 if adapter is None else len(adapter.loaded.model.prompt)
    if num_tokens + virtual == 0:
        raise bad_request("the text has no tokens, so there is nothing to continue", "prompt")
    wanted = asked
    if wanted is None:
        wanted = min(most, MAX_NEW_TOKENS if adapter is None else adapter.max_new_tokens)
        if library.context_length is not None:
            wanted = max(1, min(wanted, library.context_length - virtual - num_tokens))
    library.check_length(num_tokens, wanted, adapter)
    return wanted


def _room_for_label(adapter: Adapter) -> int:
    """Positions that a label takes, and the ensemble's prompts beyond the adapter's own."""
    assert adapter.classes is not None
    ensemble = adapter.loaded.ensemble
    longer = 0 if ensemble is None else max(0, ensemble.prompts.shape[1] - len(adapter.loaded.model.prompt))
    return longer + max(map(len, adapter.classes.ids))
