"""A real server in a thread of the test, and the plainest client there is."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai

from cli_tools import PATIENCE
from serving_tools import make_adapters
from softprompt import PromptLibrary
from softprompt.config.serve_options import ServeOptions
from softprompt.inference.sampling import Sampling
from softprompt.serving.app import create_app
from softprompt.serving.jobs import TextJob
from softprompt.serving.server import Server, bind
from softprompt.serving.state import ServerState

LONG_CONTEXT = 100_000
CHAT_TEMPLATE = (
    "{% for message in messages %}<s> {{ message.role }} : {{ message.content | trim }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error of OpenAI's form; nothing else is in the body."""
        [(name, error)] = self.json.items()
        assert name == "error"
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events."""
        lines = self.content.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        found = [line.removeprefix("data: ") for line in lines]
        return [each if each == "[DONE]" else json.loads(each) for each in found]


class Served:
    """A running server."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        self.state: ServerState = server.state
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        connection = self.connection()
        connection.request(method, path, body, sent)
        return answer_of(connection)

    def post(self, path: str, **body: Any) -> Answer:
        return self.call("POST", path, body)

    def measurement(self, name: str, **labels: str) -> float:
        return self.state.metrics.registry.get_sample_value(f"softprompt_{name}", labels) or 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """The scheduler's thread does nothing inside, since it waits for a client that takes a text."""
        busy, free = threading.Event(), threading.Event()

        def take(delta: Any) -> None:
            busy.set()
            free.wait(PATIENCE)

        ids = self.state.library.encode_raw("good")
        job = TextJob(None, ids, Sampling(max_new_tokens=2), take)
        [future] = self.state.scheduler.submit([job])
        assert busy.wait(PATIENCE)
        try:
            yield
        finally:
            free.set()
            future.result(PATIENCE)


def answer_of(connection: http.client.HTTPConnection) -> Answer:
    """The response, and the end of the connection."""
    response = connection.getresponse()
    found = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    connection.close()
    return found


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    pause = threading.Event()
    for _ in range(100 * PATIENCE):
        if is_true():
            return
        pause.wait(0.01)
    raise AssertionError("this never happened")


@contextmanager
def serving(library: PromptLibrary, **options: Any) -> Iterator[Served]:
    """A server on a free port, which is stopped at the end as by SIGTERM."""
    given = ServeOptions(port=0, **options)
    server = Server(create_app(library, given), given, bind(given.host, 0))
    ready = threading.Event()
    server.on_ready = ready.set
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield Served(server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def make_library(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE, context: int = 64) -> PromptLibrary:
    """Adapters of all kinds on a tiny base model."""
    base, adapters = make_adapters(folder)
    if chat_template is not None:
        Path(base, "chat_template.jinja").write_text(chat_template)
    config = Path(base, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": context}))
    return PromptLibrary(adapters)
