"""Requests that are refused, and clients that leave: one line in OpenAI's form, and nothing of the others is lost."""

from __future__ import annotations

import gc
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_tools import PATIENCE
from http_tools import LONG_CONTEXT, Served, answer_of, make_library, serving, wait_until

ENDLESS = 50_000
"""More tokens than a test can wait for."""
POSTS = ("completions", "chat/completions", "classify", "embeddings", "adapters/load", "adapters/unload")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Texts of its base model have no end, since no token ends them."""
    found = make_library(tmp_path_factory.mktemp("requests"), context=LONG_CONTEXT)
    found.tokenizer.eos_token = found.tokenizer.pad_token = None
    found.runner.base.generation_config.eos_token_id = None
    return found


@pytest.fixture(scope="module")
def server(library):
    with serving(library, max_completion_tokens=ENDLESS, max_texts=5, max_queue=8) as found:
        yield found


# --- what is wrong with a request -------------------------------------------------------------------

VALID = {
    "completions": {"model": "back", "prompt": "good"},
    "chat/completions": {"model": "writer", "messages": [{"role": "user", "content": "good"}], "max_tokens": 1},
    "classify": {"model": "back", "input": "good"},
    "embeddings": {"model": "back", "input": "good"},
}


@pytest.mark.parametrize("route", VALID)
def test_valid_requests(server: Served, route):
    """Those that the following tests spoil."""
    assert server.post(f"/v1/{route}", **VALID[route]).status == 200


@pytest.mark.parametrize("route", POSTS)
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_malformed_json(server: Served, route, body):
    answer = server.call("POST", f"/v1/{route}", body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["code"] == "json"


def test_json_of_another_type(server: Served):
    """A form of a foreign page can send text/plain without asking; it is not read."""
    body = json.dumps(VALID["classify"]).encode()
    for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = server.call("POST", "/v1/classify", body, kind)
        assert answer.status == 400
        assert "Content-Type: application/json" in answer.error["message"]


@pytest.mark.parametrize(
    ("route", "change", "param", "message"),
    [
        ("completions", {"prompt": [1, 2]}, "prompt", "token ids are not supported"),
        ("completions", {"prompt": [[1, 2]]}, "prompt", "token ids are not supported"),
        ("completions", {"prompt": 1}, "prompt", "token ids are not supported"),
        ("completions", {"prompt": []}, "prompt", "must be a text"),
        ("completions", {"prompt": None}, "prompt", "must be a text"),
        ("completions", {"prompt": ["a", {"text": "b"}]}, "prompt", "must not mix"),
        ("completions", {"prompt": {"text": "a"}}, "prompt", "template: true"),
        ("completions", {"prompt": "a", "model": "base", "template": True}, "template", "has no template"),
        ("completions", {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ("completions", {"max_tokens": "5"}, "max_tokens", "valid integer"),
        ("completions", {"max_tokens": True}, "max_tokens", "valid integer"),
        ("completions", {"max_tokens": 60_000, "raw": True}, "max_tokens", "at most 50000"),
        ("completions", {"temperature": 3}, "temperature", "less than or equal to 2"),
        ("completions", {"temperature": "hot"}, "temperature", "valid number"),
        ("completions", {"top_p": 0}, "top_p", "greater than 0"),
        ("completions", {"top_k": -1}, "top_k", "greater than or equal to 0"),
        ("completions", {"seed": 2**63}, "seed", "less than"),
        ("completions", {"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ("completions", {"stop": ["a"] * 5}, "stop", "at most 4 texts"),
        ("completions", {"stop": ""}, "stop", "none of them empty"),
        ("completions", {"stop": 5}, "stop", "must be a text"),
        ("completions", {"n": 2}, "n", "not supported"),
        ("completions", {"n": True}, "n", "not supported"),
        ("completions", {"best_of": 2}, "best_of", "not supported"),
        ("completions", {"echo": True}, "echo", "not supported"),
        ("completions", {"echo": 0}, "echo", "not supported"),
        ("completions", {"suffix": "end"}, "suffix", "not supported"),
        ("completions", {"presence_penalty": 0.1}, "presence_penalty", "not supported"),
        ("completions", {"frequency_penalty": -1}, "frequency_penalty", "not supported"),
        ("completions", {"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ("completions", {"stream": 1}, "stream", "valid boolean"),
        ("completions", {"stream_options": {}}, "stream_options", "needs stream: true"),
        ("completions", {"stream_options": {"x": 1}}, "stream_options.x", "unknown parameter"),
        ("completions", {"prompts": "a"}, "prompts", "unknown parameter"),
        ("completions", {"model": 5}, "model", "valid string"),
        ("completions", {"model": "bach"}, "model", "did you mean 'back'?"),
        ("completions", {"prompt": ["a"] * 6}, "prompt", "at most 5"),
        ("completions", {"prompt": "\ud800"}, None, "half of a character"),
        ("completions", {"stop": "\ud800"}, "stop", "valid string"),
        ("classify", {"model": "\ud800"}, "model", "valid string"),
        ("classify", {"model": ["back", "\ud800"]}, "model", "there is no model"),
        ("classify", {"input": {"text": float("nan")}}, "input", "neither a text nor a number"),
        ("classify", {"input": [{"text": float("-inf")}]}, "input", "neither a text nor a number"),
        ("chat/completions", {"messages": []}, "messages", "at least 1"),
        ("chat/completions", {"messages": "a"}, "messages", "valid list"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'assistant'"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "must be a text"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            "parts of the type text",
        ),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools", "not supported"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ("chat/completions", {"top_logprobs": 1}, "top_logprobs", "needs logprobs: true"),
        ("chat/completions", {"n": 3}, "n", "not supported"),
        ("chat/completions", {"reasoning_effort": "high"}, "reasoning_effort", "unknown parameter"),
        ("classify", {"model": []}, "model", "not empty"),
        ("classify", {"model": ["back", "back"]}, "model", "once"),
        ("classify", {"model": ["back", "nobody"]}, "model", "there is no model 'nobody'"),
        ("classify", {"input": ""}, None, "input 0: the column 'text' is empty"),
        ("classify", {"input": {"texts": "a"}}, None, "'text'"),
        ("classify", {"input": {"text": [1]}}, "input", "text"),
        ("classify", {"input": ["a"] * 6}, "input", "at most 5"),
        ("classify", {"input": ["a"] * 5, "model": ["back", "joint"]}, None, "divide it"),
        ("classify", {"top_k": 0}, "top_k", "greater than or equal to 1"),
        ("classify", {"abstain_below": 1.5}, "abstain_below", "less than or equal to 1"),
        ("embeddings", {"input": [[1]]}, "input", "token ids are not supported"),
        ("embeddings", {"encoding_format": "hex"}, "encoding_format", "'float'"),
        ("embeddings", {"dimensions": 5}, "dimensions", "not supported"),
        ("embeddings", {"model": "base", "input": {"text": "a"}}, "input", "no columns"),
        ("embeddings", {"model": "base", "input": "~"}, "input", "no tokens"),
    ],
)
def test_wrong_parameters(server: Served, route, change, param, message):
    answer = server.post(f"/v1/{route}", **VALID[route] | change)
    assert answer.status in (400, 404)
    assert message in answer.error["message"]
    assert answer.error["param"] == param
    assert "\n" not in answer.error["message"]


def test_missing_parameters(server: Served):
    assert server.post("/v1/completions", prompt="a").error["message"] == "the parameter model is missing"
    assert server.post("/v1/classify", model="back").error["param"] == "input"


def test_neutral_values_of_unsupported_parameters(server: Served):
    neutral = {"n": 1, "best_of": 1, "echo": False, "suffix": None, "presence_penalty": 0.0, "frequency_penalty": 0}
    neutral |= {"logit_bias": {}, "user": "someone", "stop": None, "temperature": None, "seed": None, "stream": None}
    assert server.post("/v1/completions", **VALID["completions"], **neutral).status == 200
    chat = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1, "logprobs": False}
    message = {"role": "user", "content": "good", "name": None, "tool_calls": None, "refusal": None}
    answer = server.post("/v1/chat/completions", model="writer", messages=[message], max_tokens=1, **chat)
    assert answer.status == 200


def test_nothing_to_continue(server: Served):
    """The tokenizer reads ``~`` as no token at all; a prompt alone can be continued."""
    assert "no tokens" in server.post("/v1/completions", model="base", prompt="~").error["message"]
    assert server.post("/v1/completions", model="writer", prompt="~", max_tokens=2).status == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=60)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_any_value_is_answered(server: Served, route, data):
    """With a result or with an error of the client, never with one of the server."""
    names = [*VALID[route], "temperature", "top_p", "top_k", "seed", "stop", "logprobs", "stream", "abstain_below"]
    change = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2))
    body = {"max_tokens": 2, **VALID[route], **change} if "completions" in route else VALID[route] | change
    body = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = server.call("POST", f"/v1/{route}", body, {"Content-Type": "application/json"})
    assert answer.status in (200, 400, 404)
    if answer.status != 200:
        assert answer.error["message"]


# --- routes -----------------------------------------------------------------------------------------


def test_unknown_routes_and_methods(server: Served):
    for path in ("/v1", "/v1/", "/v1/models/", "/docs", "/redoc", "/static/", "/static/../app.py", "/v1/classify/"):
        answer = server.call("GET", path)
        assert answer.status in (404, 405), path
        assert answer.error["code"] in ("route_not_found", "method_not_allowed", "model_not_found")
    answer = server.call("GET", "/v1/classify")
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert server.call("OPTIONS", "/v1/classify").status == 405
    assert server.call("BREW", "/v1/models").status == 405


def test_an_unexpected_error_tells_nothing(server: Served, monkeypatch, caplog):
    """A fault of ours: the log has it, and the client gets status 500 without details."""
    monkeypatch.setattr(server.state, "library", None)
    with caplog.at_level(logging.ERROR):
        answer = server.post("/v1/classify", **VALID["classify"])
    assert answer.status == 500
    assert answer.error == {
        "message": "the server failed; its log has the details",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "AttributeError" in caplog.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_error_in_a_stream_is_its_last_event(server: Served, monkeypatch, caplog):
    """Not an end that looks like a whole text."""
    monkeypatch.setattr(server.state, "metrics", None)
    with caplog.at_level(logging.ERROR):
        answer = server.post("/v1/completions", model="writer", prompt="good", max_tokens=2, stream=True)
    *_, last = answer.events
    assert answer.status == 200
    assert last["error"]["code"] == "internal_error"
    assert "AttributeError" in caplog.text


# --- a full queue, a client that leaves, the end ----------------------------------------------------


def test_a_full_queue(server: Served):
    """Further requests are refused at once; those that wait are answered."""
    asked = [{"model": "back", "input": ["good", "bad"]} for _ in range(4)]
    with ThreadPoolExecutor(len(asked)) as pool:
        with server.held():
            running = [pool.submit(server.post, "/v1/classify", **body) for body in asked]
            wait_until(lambda: server.state.scheduler.num_waiting == 8)
            answer = server.post("/v1/classify", model="back", input="good")
            with pytest.raises(openai.RateLimitError):
                server.openai.completions.create(model="writer", prompt="good", stream=True)
        assert [each.result(PATIENCE).status for each in running] == [200] * 4
    assert answer.status == 429
    assert answer.error["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) > 0
    assert server.post("/v1/classify", model="back", input="good").status == 200


@pytest.mark.parametrize("route", ["classify", "embeddings", "completions"])
def test_a_client_that_leaves_while_it_waits(server: Served, route, caplog):
    """Its jobs are cancelled before they start, and the log has nothing to say."""
    connection = server.connection()
    with server.held():
        body = json.dumps(VALID[route])
        connection.request("POST", f"/v1/{route}", body, {"Content-Type": "application/json"})
        wait_until(lambda: server.state.scheduler.num_waiting == 1)
        [entry] = server.state.scheduler._waiting
        connection.close()
        wait_until(entry.future.cancelled)
    wait_until(lambda: server.measurement("requests_total", route=f"/v1/{route}", model="back", status="499") > 0)
    gc.collect()  # asyncio logs a result that nobody took when it is deleted
    assert not caplog.records


def test_a_client_that_leaves_in_the_middle_of_a_stream(server: Served, library):
    """Its text leaves the batch, which has no other end."""
    before = server.measurement("batch_rows_sum")
    connection = server.connection()
    body = {"model": "base", "prompt": "good", "stream": True, "max_tokens": ENDLESS}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    assert server.state.scheduler.num_running == 1
    response.close()
    connection.close()
    wait_until(lambda: server.state.scheduler.num_running == 0)
    assert server.measurement("batch_rows_sum") - before < ENDLESS - 1
    assert server.post("/v1/classify", **VALID["classify"]).status == 200


def test_a_chat_that_is_closed_by_openais_client(server: Served, library):
    before = server.measurement("batch_rows_sum")
    messages = [{"role": "user", "content": "good"}]
    chat = server.openai.chat.completions
    stream = chat.create(model="base", messages=messages, max_tokens=ENDLESS, stream=True)
    texts = (chunk.choices[0].delta.content for chunk in stream)
    assert next(text for text in texts if text)
    stream.close()
    wait_until(lambda: server.state.scheduler.num_running == 0)
    assert server.measurement("batch_rows_sum") - before < ENDLESS - 1


def test_a_request_that_takes_too_long(library):
    """The time is up at once, so nothing depends on the speed of the machine."""
    with serving(library, request_timeout=1e-3, max_completion_tokens=ENDLESS) as server:
        with server.held():
            answer = server.post("/v1/classify", **VALID["classify"])
            stream = server.post("/v1/completions", model="writer", prompt="good", stream=True)
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert [event["error"]["code"] for event in stream.events] == ["timeout"]
        wait_until(lambda: server.state.scheduler.num_waiting == 0)
        assert server.state.scheduler.num_running == 0


def test_the_end_of_the_server(library):
    """A stream and a request that were accepted are finished, and new connections are refused."""
    with serving(library, max_completion_tokens=500) as server:
        connection, waiting = server.connection(), server.connection()
        body = {"model": "writer", "prompt": "good", "stream": True, "max_tokens": 300, "stop": ["never"]}
        with server.held():
            for each, route, sent in ((connection, "completions", body), (waiting, "classify", VALID["classify"])):
                each.request("POST", f"/v1/{route}", json.dumps(sent), {"Content-Type": "application/json"})
            wait_until(lambda: server.state.scheduler.num_waiting == 2)
            server.server.should_exit = True
            wait_until(lambda: server.state.phase == "draining")
        assert answer_of(connection).events[-1] == "[DONE]"
        assert answer_of(waiting).status == 200
        wait_until(lambda: not server.state.scheduler.is_open)
        with pytest.raises(OSError, match="refused"):
            server.call("GET", "/ready")


def test_a_server_that_drains_is_not_ready(library):
    """As a load balancer sees it on a connection that it has."""
    with serving(library) as server:
        assert server.call("GET", "/ready").json == {"status": "ok"}
        server.state.phase = "draining"
        server.state.scheduler.stop()
        assert server.call("GET", "/health").json == {"status": "draining"}
        for answer in (server.call("GET", "/ready"), server.post("/v1/classify", **VALID["classify"])):
            assert (answer.status, answer.error["code"]) == (503, "unavailable")


def test_jobs_that_are_cancelled_at_the_end(library):
    """Clients get an error, whether or not they wait for a stream."""
    with serving(library) as server, ThreadPoolExecutor(2) as pool:
        with server.held():
            answer = pool.submit(server.post, "/v1/classify", **VALID["classify"])
            stream = pool.submit(server.post, "/v1/completions", model="writer", prompt="good", stream=True)
            wait_until(lambda: server.state.scheduler.num_waiting == 2)
            stopping = threading.Thread(target=server.state.scheduler.stop, args=(False,))
            stopping.start()
            assert answer.result(PATIENCE).status == 503
            assert stream.result(PATIENCE).events[-1]["error"]["code"] == "unavailable"
        stopping.join(PATIENCE)


# --- measurements -----------------------------------------------------------------------------------


def test_measurements(library):
    with serving(library) as server:
        server.post("/v1/classify", model=["back", "joint"], input=["good", "bad"])
        server.post("/v1/completions", model="writer", prompt="good", max_tokens=3)
        server.post("/v1/completions", model="nobody", prompt="good")
        server.call("GET", "/absent")
        answer = server.call("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        for name in ("back", "joint"):
            assert server.measurement("requests_total", route="/v1/classify", model=name, status="200") == 1
        # A name that a client made up is no label: there would be no end to them.
        assert server.measurement("requests_total", route="/v1/completions", model="", status="404") == 1
        assert server.measurement("requests_total", route="other", model="", status="404") == 1
        assert server.measurement("completion_tokens_total") in (1, 2, 3)
        assert server.measurement("prompt_tokens_total") > 4
        assert server.measurement("batch_jobs_sum") == 5
        assert server.measurement("waiting_jobs") == server.measurement("running_texts") == 0
        assert b"softprompt_request_seconds_bucket" in answer.content
