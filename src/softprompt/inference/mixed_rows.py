"""The kinds of rows of a mixed batch, and what each needs from the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ..engine.kv_cache import KVCache
from ..engine.prefix_sharing import branch_tokens
from ..engine.runner import ModelRunner
from ..types import Example, Placement
from .classifier import Classes
from .score import KEYS_PER_CALL, TOKENS_PER_CALL, TOKENS_WITH_STATES

Ids: TypeAlias = Sequence[int]


@dataclass(frozen=True, eq=False)
class PlacedPrompt:
    """A prompt and its place.

    Attributes:
        matrix: ``[P, D]``.
        placement: whether it stands before or after a text.
        cache: of a prefix, if it is prefilled.
    """

    matrix: Tensor
    placement: Placement = "prefix"
    cache: KVCache | None = None


@dataclass(frozen=True, eq=False)
class LabelRow:
    """A text to classify. Its result is ``[C]`` log-probabilities, as ``label_log_probs`` computes them."""

    prompt: PlacedPrompt
    classes: Classes
    example: Example


@dataclass(frozen=True, eq=False)
class StatesRow:
    """A text to represent. Its result is its mean hidden states ``[layers, D]``, under the prompt if it is a prefix."""

    prompt: PlacedPrompt | None
    input_ids: Ids


@dataclass(frozen=True, eq=False)
class TextRow:
    """A text to continue, with or without a prompt. Its result is a ``Prefilled``."""

    prompt: PlacedPrompt | None
    input_ids: Ids


@dataclass(frozen=True, eq=False)
class StepRow:
    """One more token of a text that is being generated. Its result is a ``Prefilled`` of this token alone.

    Attributes:
        cache: of all tokens before it.
        token: its id.
    """

    cache: KVCache
    token: int


class Prefilled(NamedTuple):
    """A row that is ready to be continued.

    Attributes:
        cache: of its tokens, virtual ones included, in the order in which the model reads them.
        logits: ``[V]`` of the next token.
    """

    cache: KVCache
    logits: Tensor


MixedRow: TypeAlias = LabelRow | StatesRow | TextRow | StepRow


class Front(NamedTuple):
    """A text under a prefix prompt, or without a prompt."""

    prompt: PlacedPrompt | None
    ids: Ids
    candidates: Sequence[Ids]


class Back(NamedTuple):
    """A text with suffix prompts ``[M, P, D]`` after it; each is followed by all candidates."""

    ids: Ids
    prompts: Tensor
    candidates: Sequence[Ids]


class Parts(NamedTuple):
    """The trees that a row needs; ``states_of`` is the one whose text's hidden states are averaged."""

    front: Front | None
    back: Back | None
    states_of: Front | Back | None

    @property
    def text_before_prompts(self) -> tuple[int, ...]:
        """The text before suffix prompts; empty without suffix prompts."""
        return tuple(self.back.ids) if self.back else ()


def parts_of(row: MixedRow) -> Parts:
    """The trees that a row needs."""
    if isinstance(row, StepRow):
        read = PlacedPrompt(row.cache.hidden, "prefix", row.cache)
        return Parts(Front(read, (row.token,), ()), None, None)
    prompt, is_suffix = row.prompt, row.prompt is not None and row.prompt.placement == "suffix"
    if isinstance(row, StatesRow):
        front = Front(None if is_suffix else prompt, row.input_ids, ())
        return Parts(front, None, front)
    if isinstance(row, TextRow):
        if is_suffix and prompt is not None:
            return Parts(None, Back(row.input_ids, prompt.matrix[None], ()), None)
        return Parts(Front(prompt, row.input_ids, ()), None, None)
    classes, has_probe = row.classes, row.classes.linear_probe is not None
    if classes.ensemble is None and not is_suffix:
        front = Front(prompt, row.example.input_ids, classes.ids)
        return Parts(front, None, front if has_probe else None)
    if classes.ensemble is None:
        back = Back(row.example.input_ids, row.prompt.matrix[None], classes.ids)
    else:
        back = Back(classes.text_of(row.example), classes.ensemble.prompts.to(row.prompt.matrix), classes.ids)
    if not has_probe or is_suffix:
        return Parts(None, back, back if has_probe else None)
    front = Front(prompt, row.example.input_ids, ())
    return Parts(front, back, front)


def divide(runner: ModelRunner, rows: Sequence[MixedRow], parts: Sequence[Parts]) -> Iterator[list[int]]:
    """Divide rows among runs; rows with equal texts before suffix prompts stay together where they fit.

    Args:
        parts: of the rows, from ``parts_of``.
    """
    budget = TOKENS_PER_CALL
    if any(isinstance(row, (TextRow, StepRow)) or part.states_of for row, part in zip(rows, parts, strict=True)):
        budget = TOKENS_WITH_STATES
    if runner.backend == "levelwise":
        budget = KEYS_PER_CALL
    cost = _keys if runner.backend == "levelwise" else _tokens
    call, total, texts = list[int](), 0, set[tuple[int, ...]]()
    for row in sorted(range(len(rows)), key=lambda row: parts[row].text_before_prompts):
        own = cost(parts[row], texts)
        if call and total + own > budget:
            yield call
            call, total, texts = [], 0, set()
            own = cost(parts[row], texts)
        call.append(row)
        total += own
        texts.add(parts[row].text_before_prompts)
    if call:
        yield call


def _tokens(parts: Parts, texts: set[tuple[int, ...]]) -> int:
    """Tokens that a row adds to a run that computes ``texts`` already."""
    front, back = parts.front, parts.back
    total = len(front.ids) + branch_tokens(front.candidates) if front else 0
    if back:
        below = len(back.prompts) * (back.prompts.shape[1] + branch_tokens(back.candidates))
        total += below + (0 if parts.text_before_prompts in texts else len(back.ids))
    return total


def _keys(parts: Parts, texts: set[tuple[int, ...]]) -> int:
    """Keys that a row's candidates attend to, of which the levelwise backend makes copies."""
    front, back = parts.front, parts.back
    length = len(front.prompt.matrix) if front and front.prompt else 0
    total = (length + len(front.ids)) * max(len(front.candidates), 1) if front else 0
    if back:
        total += (len(back.ids) + back.prompts.shape[1]) * max(len(back.candidates), 1) * len(back.prompts)
    return total
