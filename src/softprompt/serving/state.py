"""What the routes share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, Request

from ..config.serve_options import ServeOptions
from ..errors import AdapterError, UnknownAdapterError
from ..inference.library import PromptLibrary
from ..inference.library_adapter import Adapter
from .errors import ApiError, bad_request, unknown_model
from .metrics import Metrics
from .scheduler import Scheduler


@dataclass(eq=False)
class ServerState:
    """What the routes share.

    Attributes:
        phase: of the server's life.
        created: Unix time of the start.
    """

    scheduler: Scheduler
    library: PromptLibrary
    options: ServeOptions
    metrics: Metrics
    phase: Literal["loading", "ok", "draining"] = "loading"
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def base_id(self) -> str:
        """Name of the base model for clients: a folder's name without its path."""
        name = self.library.base_name
        return Path(name).name if Path(name).exists() else name

    @property
    def names(self) -> list[str]:
        """Names of all models."""
        return [self.base_id, *self.library.names]

    def find(self, name: str) -> Adapter | None:
        """The adapter that a request names as its model; ``None`` for the base model.

        Raises:
            ApiError: there is no such model, or it cannot be loaded.
        """
        if name in (self.base_id, self.library.base_name):
            return None
        try:
            return self.library.get(name)
        except UnknownAdapterError:
            raise unknown_model(name, self.names) from None
        except AdapterError as error:
            raise ApiError(503, f"the adapter {name!r} cannot be used: {error}", code="adapter_unavailable") from None

    def find_adapter(self, name: str) -> Adapter:
        """The adapter that a request names as its model.

        Raises:
            ApiError: as ``find``; or it is the base model.
        """
        adapter = self.find(name)
        if adapter is None:
            raise bad_request(f"{name!r} is the base model; this route needs an adapter", "model")
        return adapter

    def check_number(self, texts: int, param: str) -> None:
        """Check the number of texts of a request.

        Raises:
            ApiError: there are too many.
        """
        if texts > self.options.max_texts:
            raise bad_request(f"{texts} texts; a request may have at most {self.options.max_texts}", param)


async def state_of(request: Request) -> ServerState:
    """The state of the application that answers a request."""
    state: ServerState = request.app.state.server
    return state


def name_models(request: Request, *names: str) -> None:
    """Name the models of a request, for the metrics. Call it with names that exist."""
    request.scope["state"]["models"] = list(names)


State = Annotated[ServerState, Depends(state_of)]
"""Type of a route's parameter that receives the state."""
