"""A runner: views that are built once and shared by threads, and what is derived from a base lives no longer."""

import gc
import threading
import weakref

import pytest
import torch

import test_suffix
import tiny
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.engine import runner as runners
from softprompt.engine.backends import levelwise, packed
from softprompt.engine.runner import ModelRunner, backends
from softprompt.engine.tree import ROOT, Tree
from softprompt.inference import forward
from softprompt.inference.classifier import label_log_probs
from softprompt.inference.evaluate import eval_loss
from softprompt.training.loop import fit
from test_mutations import must_notice

PACKED = [family for family in tiny.FAMILIES if "packed" in backends(tiny.base(family).base_model)]
# Two levels, and one batch in each: both threads reach attention equally often.
TREES = Tree((ROOT, 0, 0, 0), (5, 6, 6, 6)), Tree((ROOT, 0, 0), (9, 4, 4))


def checkpointed(family):
    base = tiny.fresh(family)
    base.gradient_checkpointing_enable()
    return base


def result(runner, tree, seed):
    """Hidden states, layer outputs and, under fixed random weights, the gradient of the embeddings."""
    embeds = tiny.prompt_for(runner.base, tree.num_tokens, seed=seed).detach().requires_grad_()
    outputs = []
    hidden = runner.forward(tree, embeds, layer_outputs=outputs)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad((hidden * direction).sum(), embeds)
    return [hidden.detach(), gradient, *(output.detach() for output in outputs)]


def check_threads(runner, monkeypatch):
    expected = [result(runner, tree, seed) for seed, tree in enumerate(TREES)]
    barrier, met, failures = threading.Barrier(2), [], []
    attend, update = packed.TreeCache.attend, levelwise.PrefixLayer.update

    def wait():
        met.append(threading.get_ident())
        barrier.wait(60)

    def repeat(which):
        try:
            for _ in range(3):
                got = result(runner, TREES[which], which)
                assert len(got) == len(expected[which]) > 2
                for ours, alone in zip(got, expected[which], strict=True):
                    assert torch.equal(ours, alone)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    with monkeypatch.context() as patch:
        patch.setattr(packed.TreeCache, "attend", lambda *args: (wait(), attend(*args))[1])
        patch.setattr(levelwise.PrefixLayer, "update", lambda *args, **more: (wait(), update(*args, **more))[1])
        threads = [threading.Thread(target=repeat, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures
    assert len(set(met)) == 2
    return len(met) // 6  # attention calls of one thread and round


@pytest.mark.parametrize("family", PACKED)
def test_two_threads_share_a_packed_view(family, monkeypatch):
    base = tiny.base(family)
    layers = base.config.get_text_config().num_hidden_layers
    assert check_threads(ModelRunner(base, "packed"), monkeypatch) == layers


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mpt", "falcon_alibi", "gpt_neo", "gptj"])
def test_two_threads_share_a_levelwise_view(family, monkeypatch):
    base = tiny.base(family)
    layers = base.config.get_text_config().num_hidden_layers
    assert check_threads(ModelRunner(base, "levelwise"), monkeypatch) == 2 * layers


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "stablelm", "gpt2"])
def test_two_threads_share_a_checkpointed_view(family, backend, monkeypatch):
    """Layers run again in the backward pass, while the other thread's call is under way."""
    base = checkpointed(family)
    layers = base.config.get_text_config().num_hidden_layers
    # Levelwise the prompt's keys are read by its rows, so its layers run once.
    assert check_threads(ModelRunner(base, backend), monkeypatch) == {"packed": 2, "levelwise": 3}[backend] * layers


@pytest.mark.parametrize("family", ["llama", "bloom", "stablelm"])
def test_a_layer_that_runs_again_after_another_call_began(family):
    """The backward pass of a call comes after a second call: what is recomputed is the first call's tree."""
    runner, backend = ModelRunner(checkpointed(family)), "packed"
    assert runner.backend == backend
    expected = [result(runner, tree, seed) for seed, tree in enumerate(TREES)]
    embeds = [tiny.prompt_for(runner.base, tree.num_tokens, seed=seed).detach() for seed, tree in enumerate(TREES)]
    hidden = [runner.forward(tree, each.requires_grad_()) for tree, each in zip(TREES, embeds, strict=True)]
    for which in (0, 1):
        direction = torch.randn(hidden[which].shape, generator=torch.Generator().manual_seed(which))
        (gradient,) = torch.autograd.grad((hidden[which] * direction).sum(), embeds[which])
        assert torch.equal(gradient, expected[which][1])


# -- what is derived from a base ---------------------------------------------------------------------------


def counted(monkeypatch):
    built = []
    for name, (make, run) in dict(runners._BACKENDS).items():

        def note(backbone, make=make):
            built.append(weakref.ref(view := make(backbone)))
            return view

        monkeypatch.setitem(runners._BACKENDS, name, (note, run))
    return built


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
def test_a_view_is_built_once_and_goes_with_its_runner(backend, monkeypatch):
    built = counted(monkeypatch)
    base = tiny.base("llama")
    runner = ModelRunner(base, backend)
    for seed, tree in enumerate(TREES):
        result(runner, tree, seed)
        runner.prefill(tree, tiny.prompt_for(base, tree.num_tokens))
    assert len(built) == 1
    del runner
    gc.collect()
    assert built[0]() is None


def test_a_runner_of_a_runner_is_the_same_one():
    runner = ModelRunner(tiny.base("llama"))
    assert ModelRunner.of(runner) is runner
    assert ModelRunner.of(runner.base).base is runner.base


def test_views_of_a_runner_under_autocast_are_its_own(monkeypatch):
    """Autocast chooses each operation's dtype, so nothing is fused there; outside all is as before."""
    built = counted(monkeypatch)
    runner = ModelRunner(tiny.base("llama"))
    tree = TREES[0]
    embeds = tiny.prompt_for(runner.base, tree.num_tokens).detach()
    before = runner.forward(tree, embeds)
    with torch.autocast("cpu", torch.bfloat16):
        assert runner.backend == "levelwise"
        assert not torch.equal(runner.forward(tree, embeds), before)
    assert runner.backend == "packed"
    assert torch.equal(runner.forward(tree, embeds), before)
    assert len(built) == 2


# -- owners ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_a_training_run_builds_one_view(placement, tmp_path, monkeypatch):
    """Ten steps, whose texts a cache has read in the case of a suffix."""
    built = counted(monkeypatch)
    run = test_suffix.make_run(tmp_path / "run", placement)
    assert fit(run).global_step == 10
    assert len(built) == 1


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_an_evaluation_builds_one_view(placement, monkeypatch):
    built = counted(monkeypatch)
    model = prompted(placement)
    examples = test_suffix.examples(6)
    label_log_probs(model.prompted, examples, test_suffix.CLASSES, batch_size=2)
    assert len(built) == 1
    eval_loss(model.prompted, examples, batch_size=2)
    assert len(built) == 2


def test_the_drop_in_model_builds_a_view_for_each_call(monkeypatch):
    """The base may change between calls; within one, packs, prefill and further tokens share a view."""
    built = counted(monkeypatch)
    model, values = prompted("prefix"), torch.stack(tiny.ids(8, 8, 8))
    monkeypatch.setattr(forward, "default_tokens_per_pack", lambda _: 8)
    output = model(input_ids=values, labels=values)
    output.loss.backward()
    assert output.logits.shape[:2] == (3, 5 + 8)
    assert len(built) == 1
    model(input_ids=values, labels=values).loss.backward()
    assert len(built) == 2
    model.generate(values, max_new_tokens=4, pad_token_id=0)
    assert len(built) == 3


def prompted(placement):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_placement=placement)
    model = get_peft_model(tiny.base("llama"), config)
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, 5))
    return model


def test_state_that_calls_share_is_noticed(monkeypatch):
    """The check itself: a fault by which all calls of a view read the tree of the last one."""
    runner = ModelRunner(tiny.base("llama"), "packed")
    check_threads(runner, monkeypatch)
    real, last = packed.TreeCache.__init__, []

    def note(self, *args):
        real(self, *args)
        last[:] = [self]

    attend = packed.TreeCache.attend
    monkeypatch.setattr(packed.TreeCache, "__init__", note)
    monkeypatch.setattr(packed.TreeCache, "attend", lambda _, *args: attend(last[0], *args))
    must_notice(check_threads, runner, monkeypatch)
