"""The routes of the server, asked by OpenAI's client where it has them; answers as the library gives them."""

from __future__ import annotations

import base64
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import torch

import softprompt
from http_tools import Served, make_library, serving
from serving_tools import KINDS
from softprompt import PromptLibrary

TEXTS = ["good service", "why is the phone awful", "thanks sir"]
LABELLED = ("back", "probed", "joint")
HIDDEN = "the </s> <s> phone"
"""A text with special tokens."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return make_library(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def server(library):
    with serving(library) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served):
    return server.openai


def alone(library: PromptLibrary, name: str):
    """The adapter, loaded without the others."""
    return softprompt.load(library.get(name).loaded.name)


def greedy(library: PromptLibrary, ids, count: int) -> list[int]:
    """Greedy tokens of the base model, by transformers alone."""
    output = library.runner.base.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return output[0, len(ids) :].tolist()


def text_of(library: PromptLibrary, ids) -> str:
    return library.tokenizer.decode(ids, skip_special_tokens=True)


# --- models -----------------------------------------------------------------------------------------


def test_models(client, server):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["base", *sorted(KINDS)]
    assert models["base"].owned_by == "base"
    joint = models["joint"]
    assert (joint.owned_by, joint.parent, joint.problem) == ("softprompt", "base", None)
    assert joint.task == {
        "kind": "classification",
        "labels": ["yes", "no"],
        "text_columns": ["text"],
        "template": "text : {text} Label :",
        "answers_with": "label",
        "num_virtual_tokens": 6,
        "prompt_placement": "suffix",
        "linear_probe": True,
        "ensemble": 3,
    }
    assert client.models.retrieve("joint") == joint
    assert client.models.retrieve("base") == models["base"]
    with pytest.raises(openai.NotFoundError, match=r"there is no model 'joins'; did you mean 'joint'\?"):
        client.models.retrieve("joins")


def test_what_answers_with_its_label(client):
    """Only an adapter that was trained to write its label writes it."""
    models = {model.id: model for model in client.models.list() if model.owned_by == "softprompt"}
    assert {name for name, model in models.items() if model.task["answers_with"] == "text"} == {"front", "writer"}


def test_details_of_an_adapter(server, library):
    folder = Path(library.get("probed").loaded.name)
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\nbroken\n[1]\n')
    (folder / "metrics.json").write_text('{"num_examples": 3, "accuracy": 0.5}')
    found = server.call("GET", "/v1/adapters/probed").json
    assert found["name"] == "probed"
    assert found["log"] == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    assert (found["metrics"]["num_examples"], found["metrics"]["accuracy"]) == (3, 0.5)
    assert len(found["nearest"]) == len(library.get("probed").loaded.model.prompt)
    for nearest in found["nearest"]:
        similarities = [each["similarity"] for each in nearest]
        assert len(nearest) == 5
        assert similarities == sorted(similarities, reverse=True)
    without = server.call("GET", "/v1/adapters/back").json
    assert (without["log"], without["metrics"]) == ([], None)
    (folder / "metrics.json").write_text("broken")
    assert server.call("GET", "/v1/adapters/probed").json["metrics"] is None
    for name in ("base", "absent"):
        assert server.call("GET", f"/v1/adapters/{name}").error["code"] == "model_not_found"


# --- completions ------------------------------------------------------------------------------------


def test_the_base_model_continues_a_text(client, library):
    ids = library.encode_raw("good service")
    found = client.completions.create(model="base", prompt="good service", max_tokens=6)
    assert found.choices[0].text.strip() == text_of(library, greedy(library, ids, 6))
    assert (found.object, found.model) == ("text_completion", "base")
    assert found.usage.prompt_tokens == len(ids) == 2
    assert found.usage.total_tokens == 2 + found.usage.completion_tokens


def test_a_generation_adapter_answers_as_it_does_alone(client, library):
    expected = alone(library, "writer").predict(TEXTS)
    found = client.completions.create(model="writer", prompt=TEXTS, extra_body={"template": True})
    assert [choice.text.strip() for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2]


def test_without_template_the_text_is_continued_as_it_is(client, library):
    adapter = library.get("writer")
    rendered = "text : good service Label :"
    first = client.completions.create(model="writer", prompt=rendered, max_tokens=4)
    second = client.completions.create(
        model="writer", prompt="good service", max_tokens=4, extra_body={"template": True}
    )
    assert first.choices[0].text == second.choices[0].text
    assert first.usage.prompt_tokens == len(adapter.encode("good service").input_ids)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_classification_adapter_answers_with_its_label(client, library, name, stream):
    expected = alone(library, name).predict(TEXTS[0])
    found = client.completions.create(model=name, prompt=TEXTS[0], stream=stream, extra_body={"template": True})
    [completion] = found if stream else [found]
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == (expected.label, "stop")
    assert choice.answer["kind"] == "label"
    assert choice.answer["label"] == expected.label
    assert choice.answer["probability"] == pytest.approx(expected.probability, rel=1e-4)


def test_a_label_of_a_text_that_is_formatted_already(server, library):
    """Without template, and with or without the answer prefix."""
    expected = alone(library, "back").predict(TEXTS[0])
    text = f"text : {TEXTS[0]} Label :"
    found = server.post("/v1/completions", model="back", prompt=text).json["choices"][0]
    assert found["answer"]["probability"] == pytest.approx(expected.probability, rel=1e-4)


def test_an_answer_prefix_follows_a_text_unless_it_is_there(server, library, tmp_path):
    adapter = library.get("front").loaded
    shutil.copytree(adapter.name, tmp_path / "prefixed")
    (tmp_path / "prefixed" / "train_config.yaml").unlink()
    replace(adapter.task, template="text : {text}", answer_prefix="\nLabel :").save(tmp_path / "prefixed")
    library.add("prefixed", tmp_path / "prefixed")
    asked = (
        {"prompt": TEXTS[0], "template": True},
        *({"prompt": f"text : {TEXTS[0]}{end}"} for end in ("", "\nLabel :")),
    )
    answers = [server.post("/v1/completions", model="prefixed", **each).json for each in asked]
    library.remove("prefixed")
    assert len({answer["usage"]["prompt_tokens"] for answer in answers}) == 1
    first, *others = (answer["choices"][0]["answer"] for answer in answers)
    for other in others:
        assert other["probability"] == pytest.approx(first["probability"], rel=1e-4)


def test_raw_generates(client, library):
    found = client.completions.create(model="back", prompt="good", max_tokens=3, extra_body={"raw": True})
    assert found.choices[0].answer is None
    assert found.usage.completion_tokens > 0


def test_columns(client, library):
    row = {"text": "good", "help": "phone"}
    expected = alone(library, "pairs").predict(row)
    found = client.completions.create(model="pairs", prompt="", extra_body={"prompt": row, "template": True})
    assert found.choices[0].text == expected.label
    several = {"prompt": [row, row], "template": True}
    found = client.completions.create(model="pairs", prompt="", extra_body=several)
    assert [choice.text for choice in found.choices] == [expected.label] * 2


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_stream_has_the_same_text(client, logprobs):
    asked = {"model": "writer", "prompt": TEXTS[:2], "max_tokens": 5, "logprobs": logprobs}
    whole = client.completions.create(**asked)
    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage == whole.usage
    assert last.choices == []
    for index, choice in enumerate(whole.choices):
        parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens]
        assert tokens == ([] if logprobs is None else choice.logprobs.tokens)


def test_logprobs(client, library):
    found = client.completions.create(model="base", prompt="good service", max_tokens=4, logprobs=3).choices[0]
    ids = library.encode_raw("good service")
    with torch.no_grad():
        expected = library.runner.base(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    assert found.logprobs.token_logprobs[0] == pytest.approx(float(expected.max()), abs=1e-4)
    top = sorted(found.logprobs.top_logprobs[0].values(), reverse=True)
    assert top == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert "".join(found.logprobs.tokens) == found.text
    for token, offset in zip(found.logprobs.tokens, found.logprobs.text_offset, strict=True):
        assert found.text[offset:].startswith(token)


def test_sampling_repeats_with_its_seed(client):
    def text(seed: int) -> str:
        asked = {"temperature": 2.0, "seed": seed, "top_p": 0.99, "max_tokens": 12}
        return client.completions.create(model="base", prompt="good", **asked).choices[0].text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_stop_texts(client):
    whole = client.completions.create(model="writer", prompt="good service", max_tokens=5).choices[0]
    words = whole.text.split()
    stop = words[-1]
    found = client.completions.create(model="writer", prompt="good service", max_tokens=5, stop=[stop, "never"])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (whole.text.split(stop)[0], "stop")


def test_a_text_makes_no_special_tokens(library, client):
    found = client.completions.create(model="base", prompt=HIDDEN, max_tokens=1)
    assert {0, 1, 2}.isdisjoint(library.encode_raw(HIDDEN))
    assert found.usage.prompt_tokens == len(library.encode_raw(HIDDEN))


def test_a_text_that_is_cut(server):
    """A template allows it; a text that is continued as it is must fit."""
    long = " ".join(["good"] * 100)
    for name in ("writer", "back"):
        [choice] = server.post("/v1/completions", model=name, prompt=long, template=True).json["choices"]
        assert choice["truncated"]
        error = server.post("/v1/completions", model=name, prompt=long).error
        assert error["code"] == "context_length_exceeded"
    error = server.post("/v1/completions", model="base", prompt="good", max_tokens=64).error
    assert error["code"] == "context_length_exceeded"
    [choice] = server.post("/v1/completions", model="base", prompt=" ".join(["good"] * 63)).json["choices"]
    assert not choice["truncated"]


# --- classification and embeddings ------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LABELLED, "front"])
def test_classify(server, library, name):
    adapter = alone(library, name)
    expected = adapter.predict_proba(TEXTS)
    found = server.post("/v1/classify", model=name, input=TEXTS).json
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    for each, probabilities in zip(found["data"], expected, strict=True):
        assert each["model"] == name
        assert each["num_classes"] == len(adapter.labels)
        assert each["label"] == adapter.labels[int(probabilities.argmax())]
        assert each["probs"] == pytest.approx(probabilities.tolist(), rel=1e-4)
        assert not each["truncated"]
    lengths = [len(library.get(name).encode(text).input_ids) for text in TEXTS]
    assert found["usage"] == {"prompt_tokens": sum(lengths), "completion_tokens": 0, "total_tokens": sum(lengths)}


def test_classify_by_several_tasks(server):
    """A single text is no list, and each task has its own labels."""
    found = server.post("/v1/classify", model=list(LABELLED), input=TEXTS[0], top_k=2, abstain_below=0.999999).json
    assert found["model"] == list(LABELLED)
    assert [each["model"] for each in found["data"]] == list(LABELLED)
    for each in found["data"]:
        alone = server.post("/v1/classify", model=each["model"], input=TEXTS[0]).json["data"][0]
        assert each["probs"] == pytest.approx(alone["probs"], rel=1e-4)
        assert each["top"][0] == {"label": alone["label"], "prob": pytest.approx(max(alone["probs"]), rel=1e-4)}
        assert len(each["top"]) == 2
        assert (each["label"], alone["top"]) == (None, None)


def test_classify_columns(server, library):
    row = {"text": "good", "help": "phone", "unused": 3}
    expected = alone(library, "pairs").predict(row)
    found = server.post("/v1/classify", model="pairs", input=[row]).json["data"][0]
    assert found["label"] == expected.label
    error = server.post("/v1/classify", model="pairs", input="good").error
    assert "text" in error["message"]
    error = server.post("/v1/classify", model="pairs", input={"text": "good"}).error
    assert "'help'" in error["message"]


def test_a_generation_adapter_has_no_labels(server):
    found = server.post("/v1/classify", model=["back", "writer"], input="good")
    assert found.status == 400
    assert "use /v1/completions" in found.error["message"]
    assert "base model" in server.post("/v1/classify", model="base", input="good").error["message"]


@pytest.mark.parametrize("name", [*KINDS, "base"])
def test_embeddings(client, server, name):
    """OpenAI's client asks for base64."""
    texts = [{"text": text, "help": text} for text in TEXTS] if name == "pairs" else TEXTS
    plain = server.post("/v1/embeddings", model=name, input=texts).json
    found = client.embeddings.create(model=name, input=texts)
    assert [each.index for each in found.data] == [0, 1, 2]
    for ours, theirs in zip(plain["data"], found.data, strict=True):
        assert sum(x * x for x in ours["embedding"]) == pytest.approx(1, abs=1e-4)
        assert theirs.embedding == pytest.approx(ours["embedding"], abs=1e-5)
    assert found.usage.prompt_tokens == plain["usage"]["prompt_tokens"] > 0


def test_base64_is_little_endian_float32(server):
    plain = server.post("/v1/embeddings", model="back", input="good").json["data"][0]["embedding"]
    coded = server.post("/v1/embeddings", model="back", input="good", encoding_format="base64").json
    numbers = struct.unpack(f"<{len(plain)}f", base64.b64decode(coded["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(plain, abs=1e-6)


# --- chat -------------------------------------------------------------------------------------------

CHAT = [
    {"role": "developer", "content": "help the sir"},
    {"role": "user", "content": [{"type": "text", "text": "good "}, {"type": "text", "text": "phone "}]},
]


def test_chat(client, library):
    """The same tokens as transformers' own, and the same answer."""
    messages = [{"role": "system", "content": "help the sir"}, {"role": "user", "content": "good phone "}]
    tokenizer = library.tokenizer
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    found = client.chat.completions.create(model="base", messages=CHAT, max_completion_tokens=5, logprobs=True)
    expected = greedy(library, ids, 5)
    assert found.choices[0].message.content.strip() == text_of(library, expected)
    assert found.usage.prompt_tokens == len(ids)
    assert (found.object, found.choices[0].message.role) == ("chat.completion", "assistant")
    logprobs = found.choices[0].logprobs.content
    assert "".join(each.token for each in logprobs) == found.choices[0].message.content
    assert all(bytes(each.bytes).decode() == each.token and each.top_logprobs == [] for each in logprobs)


@pytest.mark.parametrize("name", ["base", "writer"])
def test_a_stream_of_a_chat(client, name):
    asked = {"model": name, "messages": CHAT, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    first, *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    parts = [part for chunk in chunks if chunk.choices[0].logprobs for part in chunk.choices[0].logprobs.content]
    assert parts == whole.choices[0].logprobs.content
    assert [len(part.top_logprobs) for part in parts] == [2] * len(parts)
    assert (last.choices, last.usage) == ([], whole.usage)


def test_an_adapter_that_answers_with_its_label_does_not_chat(client):
    with pytest.raises(openai.BadRequestError, match="use /v1/classify or /v1/completions"):
        client.chat.completions.create(model="back", messages=CHAT)
    found = client.chat.completions.create(model="back", messages=CHAT, max_tokens=2, extra_body={"raw": True})
    assert found.choices[0].message.content


def test_a_base_model_without_a_chat_template(tmp_path):
    no_chat = pytest.raises(openai.BadRequestError, match="use /v1/completions with a prompt instead")
    with serving(make_library(tmp_path, chat_template=None)) as server, no_chat:
        server.openai.chat.completions.create(model="base", messages=CHAT)
