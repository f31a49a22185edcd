"""The scheduler: jobs of many clients in one batch, cancellation, room, errors and its end."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

from cli_tools import PATIENCE
from serving_tools import make_adapters
from softprompt import PromptLibrary
from softprompt.errors import ConfigError
from softprompt.inference.sampling import Sampling
from softprompt.serving.jobs import LabelJob, StatesJob, TextJob
from softprompt.serving.scheduler import ClosedError, Limits, QueueFullError, Scheduler
from softprompt.types import Example

TEXTS = ["good service", "why is the phone awful", "thanks sir", "help"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return PromptLibrary(make_adapters(tmp_path_factory.mktemp("scheduler"))[1])


@pytest.fixture
def scheduler(library):
    made = Scheduler(library)
    made.start()
    yield made
    made.stop(drain=False)


def label(library, name, text):
    adapter = library.get(name)
    return LabelJob(adapter, adapter.encode(text))


def text_job(library, name, text, sampling=None, on_delta=None):
    adapter = library.get(name) if name else None
    ids = adapter.encode(text).input_ids if adapter else library.encode_raw(text)
    return TextJob(adapter, ids, sampling or Sampling(6), on_delta)


class Gate:
    """A client of one text, in whose listener the scheduler's thread waits until it is opened."""

    def __init__(self, scheduler, tokens=2):
        self.reached, self._open = threading.Event(), threading.Event()
        job = text_job(scheduler.library, None, "good", Sampling(tokens), self._wait)
        [self.future] = scheduler.submit([job])
        assert self.reached.wait(PATIENCE)

    def _wait(self, _):
        self.reached.set()
        assert self._open.wait(PATIENCE)

    def open(self):
        self._open.set()


def test_results_are_those_of_jobs_alone(library, scheduler):
    """Jobs of all kinds, submitted at once, from a thread each."""
    jobs = [label(library, name, text) for name in ("front", "back", "probed", "joint") for text in TEXTS]
    jobs += [text_job(library, name, text) for name in ("writer", "back", None) for text in TEXTS]
    jobs += [StatesJob(library.get("joint"), library.get("joint").encode(text)) for text in TEXTS]
    alone = [scheduler.submit([job])[0].result(PATIENCE) for job in jobs]
    together = [future.result(PATIENCE) for future in scheduler.submit(jobs * 2)]
    for job, found, expected in zip(jobs * 2, together, alone * 2, strict=True):
        if isinstance(job, TextJob):
            assert found == expected
        else:
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_probabilities_and_embeddings(library, scheduler):
    probabilities, vector = (
        future.result(PATIENCE)
        for future in scheduler.submit(
            [label(library, "joint", "help"), StatesJob(library.get("joint"), library.get("joint").encode("help"))]
        )
    )
    expected = library.get("joint").loaded
    assert len(probabilities) == len(expected.task.labels)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert torch.tensor(vector).norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("joins", [True, False], ids=["in one batch", "apart"])
def test_a_decoding_step_in_the_batch_that_starts_jobs(library, joins, monkeypatch):
    """Texts are the same whether their steps are part of mixed batches or not."""
    monkeypatch.setattr(Scheduler, "_joins", property(lambda self: joins and bool(self._batch.rows)))
    scheduler = Scheduler(library, Limits(max_batch_tokens=1))  # one new job per round
    scheduler.start()
    jobs = [text_job(library, name, text, Sampling(12)) for name in ("writer", "front") for text in TEXTS]
    found = [each.result(PATIENCE) for each in scheduler.submit(jobs)]
    scheduler.stop()
    for job, completion in zip(jobs, found, strict=True):
        base, adapter = library.runner.base, job.adapter
        embeds = base.get_input_embeddings()
        read = torch.cat([adapter.loaded.model.prompt, embeds(torch.tensor(job.input_ids))])
        tokens = []
        for _ in range(12):
            tokens.append(int(base(inputs_embeds=read[None]).logits[0, -1].argmax()))
            read = torch.cat([read, embeds(torch.tensor(tokens[-1:]))])
        text = library.tokenizer.decode(tokens, skip_special_tokens=True)
        assert completion.text.split() == text.split()
        assert completion.num_tokens == 12


def test_deltas_add_up_to_the_text(library, scheduler):
    parts = []
    job = text_job(library, "writer", "good", Sampling(12), lambda each: parts.append(each.text))
    whole = scheduler.submit([job])[0].result(PATIENCE)
    assert "".join(parts) == whole.text
    assert len(parts) > 1


def test_a_full_queue_takes_all_or_none(library):
    scheduler = Scheduler(library, Limits(max_queue=3))
    scheduler.start()
    gate = Gate(scheduler)
    first = scheduler.submit([label(library, "front", text) for text in TEXTS[:2]])
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        scheduler.submit([label(library, "front", text) for text in TEXTS[:2]])
    last = scheduler.submit([label(library, "front", "help")])
    assert scheduler.num_waiting == 3
    gate.open()
    for future in (*first, *last):
        assert len(future.result(PATIENCE)) == 3
    scheduler.stop()


def test_a_cancelled_job_leaves(library, scheduler):
    """One that waits is never started; a text that is generated leaves the batch before the next step."""
    gate = Gate(scheduler, tokens=30)
    [waiting] = scheduler.submit([label(library, "front", "help")])
    assert waiting.cancel()
    assert gate.future.cancel()
    gate.open()
    assert len(scheduler.submit([label(library, "front", "good")])[0].result(PATIENCE)) == 3
    assert scheduler.num_running == 0
    for future in (waiting, gate.future):
        with pytest.raises(CancelledError):
            future.result(PATIENCE)


def test_a_client_that_fails_is_dropped(library, scheduler):
    def fail(_):
        raise RuntimeError("the connection is closed")

    [broken] = scheduler.submit([text_job(library, "writer", "good", Sampling(30), fail)])
    [whole] = scheduler.submit([text_job(library, "writer", "good")])
    assert whole.result(PATIENCE).num_tokens == 6
    with pytest.raises(CancelledError):
        broken.result(PATIENCE)


def test_a_job_that_fails_fails_alone(library, scheduler):
    """The others of its batch are computed."""
    gate = Gate(scheduler)
    good = [label(library, "front", "help"), text_job(library, "writer", "good")]
    bad = TextJob(None, (), Sampling(3))
    futures = scheduler.submit([good[0], bad, good[1]])
    gate.open()
    with pytest.raises(ConfigError, match="neither a text nor a prompt"):
        futures[1].result(PATIENCE)
    assert len(futures[0].result(PATIENCE)) == 3
    assert futures[2].result(PATIENCE).num_tokens == 6


def test_texts_wait_for_room(library):
    """As many texts as fit into the KV cache are generated together; labels overtake those that wait."""
    job = text_job(library, "writer", "good", Sampling(8))
    rounds = []
    scheduler = Scheduler(library, Limits(max_cache_tokens=2 * job.most_tokens), rounds.append)
    scheduler.start()
    gate = Gate(scheduler)
    futures = scheduler.submit([*[job] * 5, label(library, "front", "help")])
    gate.open()
    texts = {future.result(PATIENCE).text for future in futures[:5]}
    assert len(texts) == 1
    assert len(futures[5].result(PATIENCE)) == 3
    assert max(each.rows for each in rounds) == 2
    scheduler.stop()


def test_a_text_larger_than_the_room_is_generated_alone(library):
    scheduler = Scheduler(library, Limits(max_cache_tokens=4, max_batch_tokens=2))
    scheduler.start()
    jobs = [text_job(library, "writer", text) for text in TEXTS]
    assert [each.result(PATIENCE).num_tokens for each in scheduler.submit(jobs)] == [6] * 4
    scheduler.stop()


def test_the_end(library):
    """Accepted jobs are finished; further ones are refused."""
    scheduler = Scheduler(library)
    with pytest.raises(ClosedError):
        scheduler.submit([label(library, "front", "good")])
    scheduler.start()
    gate = Gate(scheduler, tokens=9)
    futures = scheduler.submit([text_job(library, "writer", "good"), label(library, "front", "help")])
    end = threading.Thread(target=scheduler.stop)
    end.start()
    while scheduler.is_open:
        pass
    with pytest.raises(ClosedError, match="shutting down"):
        scheduler.submit([label(library, "front", "good")])
    gate.open()
    end.join(PATIENCE)
    assert gate.future.result(0).num_tokens == 9
    assert futures[0].result(0).num_tokens == 6
    assert len(futures[1].result(0)) == 3


def test_an_end_without_draining(library):
    scheduler = Scheduler(library)
    scheduler.start()
    gate = Gate(scheduler, tokens=50)
    [waiting] = scheduler.submit([LabelJob(library.get("front"), Example((5,), ()))])
    end = threading.Thread(target=scheduler.stop, kwargs={"drain": False})
    end.start()
    assert_cancelled(waiting)
    gate.open()
    end.join(PATIENCE)
    assert_cancelled(gate.future)


def assert_cancelled(future):
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
