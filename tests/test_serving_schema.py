"""The OpenAPI schema: no request makes the server fail, and its answers are as the schema says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from cli_tools import PATIENCE
from http_tools import make_library, serving

FEW = settings(max_examples=15, suppress_health_check=list(HealthCheck))
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
]
OPERATIONS = {
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/adapters/{name}",
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /v1/classify",
    "POST /v1/embeddings",
    "POST /v1/adapters/load",
    "POST /v1/adapters/unload",
    "GET /health",
    "GET /ready",
    "GET /metrics",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    with serving(make_library(folder), allow_runtime_loading=folder, max_completion_tokens=8) as found:
        yield found


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_operations(schema):
    assert {operation.ok().label for operation in schema.get_all_operations()} == OPERATIONS


def send(case):
    case.call_and_validate(checks=CHECKS, timeout=PATIENCE)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_requests_that_the_schema_allows(schema, operation):
    """Half of them name a model that there is, so that they are answered."""
    method, path = operation.split()

    @FEW
    @given(schema[path][method].as_strategy(), st.sampled_from([None, "base", "writer", "back"]))
    def check(case, model):
        if model is not None and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
        send(case)

    check()


@pytest.mark.parametrize("operation", sorted(each for each in OPERATIONS if each.startswith("POST")))
def test_requests_that_the_schema_forbids(schema, operation):
    method, path = operation.split()
    FEW(given(schema[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))(send))()
