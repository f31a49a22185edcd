"""``GET /v1/models``, and the details of an adapter."""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from ..errors import SoftPromptError
from ..inference.inspect import inspect_prompt
from ..inference.library_adapter import Adapter
from ..models.embeddings import vocabulary_size
from ..storage.record import LOG_NAME, METRICS_NAME, Metrics
from .errors import RESPONSES, ApiError, unknown_model
from .schemas.models import AdapterDetails, Model, ModelList, NearestToken, TaskInfo
from .state import ServerState, State
from .tasks import ADAPTERS_KEPT, answers_with
from .waiting import in_thread

router = APIRouter()
NEAREST = 5
_MAX_LOG_BYTES = 16 << 20


@router.get("/v1/models", responses=RESPONSES)
async def list_models(state: State) -> ModelList:
    """The base model and all adapters."""
    return await in_thread(lambda: ModelList(data=[_base(state), *(_adapter(state, n) for n in state.library.names)]))


@router.get("/v1/models/{model:path}", responses=RESPONSES)
async def show_model(model: str, state: State) -> Model:
    """The base model or an adapter."""
    return await in_thread(_model, state, model)


@router.get("/v1/adapters/{name:path}", responses=RESPONSES)
async def show_adapter(name: str, state: State) -> AdapterDetails:
    """The tokens nearest to the virtual tokens of an adapter, and the records of its training."""
    return await in_thread(_details, state, name)


def _model(state: ServerState, name: str) -> Model:
    if name == state.base_id:
        return _base(state)
    if name not in state.library.names:
        raise unknown_model(name, state.names)
    return _adapter(state, name)


def _base(state: ServerState) -> Model:
    return Model(id=state.base_id, created=state.created, owned_by="base")


def _adapter(state: ServerState, name: str) -> Model:
    """An adapter, or why it cannot be loaded."""
    created, task, problem = state.created, None, None
    try:
        adapter = state.find(name)
        if adapter is not None:
            created, task = int(adapter.created), _task(adapter)
    except ApiError as error:
        problem = str(error)
    problem = state.library.problems.get(name, problem)
    return Model(id=name, created=created, owned_by="softprompt", parent=state.base_id, problem=problem, task=task)


@functools.lru_cache(ADAPTERS_KEPT)
def _task(adapter: Adapter) -> TaskInfo:
    task, loaded = adapter.task, adapter.loaded
    return TaskInfo(
        kind="classification" if task.is_classification else "generation",
        labels=list(task.labels),
        text_columns=list(task.text_columns),
        template=task.template,
        answers_with=answers_with(adapter),
        num_virtual_tokens=len(loaded.model.prompt),
        prompt_placement=loaded.model.placement,
        linear_probe=loaded.linear_probe is not None,
        ensemble=0 if loaded.ensemble is None else len(loaded.ensemble.prompts),
    )


def _details(state: ServerState, name: str) -> AdapterDetails:
    adapter = state.find(name)
    if adapter is None:
        raise unknown_model(name, state.library.names)
    folder = Path(adapter.loaded.name)
    metrics = None
    with suppress(SoftPromptError, OSError):
        if (folder / METRICS_NAME).is_file():
            metrics = Metrics.load(folder).to_dict()
    return AdapterDetails(name=name, nearest=_nearest(adapter), log=_log(folder / LOG_NAME), metrics=metrics)


@functools.lru_cache(ADAPTERS_KEPT)
def _nearest(adapter: Adapter) -> list[list[NearestToken]]:
    model, tokenizer = adapter.loaded.model, adapter.loaded.tokenizer
    embeddings = model.base.get_input_embeddings()
    nearest = min(NEAREST, vocabulary_size(embeddings))
    # In a thread that ends: each thread that runs torch keeps OpenMP threads, which slow the scheduler's down.
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(inspect_prompt, model.prompt, None, embeddings, nearest=nearest).result()
    return [
        [NearestToken(token=tokenizer.decode([id_]), similarity=cosine) for id_, cosine in token.by_cosine]
        for token in report.tokens
    ]


def _log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training log; lines that are not JSON objects are left out."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_LOG_BYTES).splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line, parse_constant=lambda name: None))  # NaN is not JSON
    return [row for row in rows if isinstance(row, dict)]
