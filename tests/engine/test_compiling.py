"""Compiled blocks: how many graphs there are and whose, and what happens where compilation fails. With backends that
run what dynamo has traced as it is: its graphs and guards are the same, without minutes of code generation."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import warnings

import pytest
import torch

from candela import CandelaWarning, Engine, Lora, Request
from candela.engine.fast import compile_blocks, compiling
from tests import loras
from tests.loras import FORMATS

SHORT = "a star"
LONG = "a very long prompt that says much about what is to be seen in the picture, and more"
PLAIN = Request(SHORT, width=64, height=64, steps=1, guidance=0.0)


class Compiler:
    """A backend that counts."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def compiled(model, backend, fast=False) -> Engine:
    engine = Engine.load(model, device="cpu", fast=fast)
    compile_blocks(engine.components.transformer, backend=backend)
    return engine


def latents(engine: Engine, request: Request = PLAIN) -> torch.Tensor:
    return engine.denoise(request, engine.encode(request.prompts, request.negatives))


def requests() -> list[Request]:
    """Lengths of prompts, sizes of pictures, guidance, several pictures at once."""
    one, two = {"height": 64, "steps": 1, "guidance": 0.0}, {"height": 64, "steps": 1, "guidance": 4.0}
    return [
        Request(SHORT, width=64, **one),
        Request(LONG, width=64, **one),
        Request(SHORT, width=96, **one),
        Request(SHORT, "", width=64, **two),
        Request(LONG, "", width=96, **two),
        Request([SHORT, LONG], width=64, **one),
        Request([SHORT] * 3, width=64, **one),
    ]


@pytest.fixture(autouse=True)
def nothing_falls_back(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would write out all of it
    with warnings.catch_warnings():
        warnings.simplefilter("error", CandelaWarning)
        yield


def test_every_engine_has_few_graphs_and_its_own(tiny_models):
    from torch._dynamo.utils import counters

    counters.clear()
    first, second = Compiler(), Compiler()
    engine = compiled(tiny_models["z-image"], first)
    for request in requests():
        latents(engine, request)
    graphs = first.graphs
    assert 0 < graphs <= 7
    for request in requests():
        latents(engine, dataclasses.replace(request, height=96))
    assert first.graphs == graphs, "no other size has one of its own"
    latents(compiled(tiny_models["z-image"], second))
    assert second.graphs == 2
    assert counters["frames"]["total"] == counters["frames"]["ok"] == graphs + second.graphs, "nothing runs eagerly"


def test_sizes_that_agree_by_chance_are_not_taken_for_one(tiny_models):
    """32 tokens of text, and 32 values in each of the model's."""
    compiler = Compiler()
    engine = compiled(tiny_models["z-image"], compiler)
    assert engine.components.transformer.config.dim == 32
    latents(engine)
    graphs = compiler.graphs
    latents(engine, Request(LONG, width=64, height=64, steps=1, guidance=0.0))
    assert compiler.graphs == graphs


def lora_file(folder, engine) -> Lora:
    loras.write(folder / "lora.safetensors", FORMATS["bare keys, .default."], engine.components.transformer)
    return Lora(folder / "lora.safetensors")


def test_whichever_thread_compiles_notices_loras(tiny_models, tmp_path):
    """Settings of dynamo hold in the thread that makes them."""
    plain = Engine.load(tiny_models["z-image"], device="cpu")
    lora = lora_file(tmp_path, plain)
    engine = compiled(tiny_models["z-image"], Compiler())
    found = []

    def work() -> None:
        for each in ([], [lora]):
            engine.set_loras(each)
            found.append(latents(engine))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    plain.set_loras([lora])
    torch.testing.assert_close(found[1], latents(plain))
    assert not torch.allclose(found[0], found[1], atol=0.01)


def test_at_the_limit_graphs_are_made_anew_and_nothing_runs_eagerly(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS", 3)
    compiler = Compiler()
    engine, plain = compiled(tiny_models["z-image"], compiler), Engine.load(tiny_models["z-image"], device="cpu")
    for each in ([], [lora_file(tmp_path, plain)], []):
        before = compiler.graphs
        engine.set_loras(each)
        plain.set_loras(each)
        torch.testing.assert_close(latents(engine), latents(plain))
        assert before < compiler.graphs <= before + 4  # 2, and torch 2.8 counts otherwise


def test_without_a_compiler_it_runs_uncompiled_and_says_so_once(tiny_models):
    def compiler(graph, inputs):
        raise RuntimeError("no such kernel\nand more")

    engine, plain = compiled(tiny_models["z-image"], compiler), Engine.load(tiny_models["z-image"], device="cpu")
    with pytest.warns(CandelaWarning, match=r"RuntimeError: no such kernel\): .* install gcc and python3-dev") as told:
        first = latents(engine)
    assert [each.category for each in told].count(CandelaWarning) == 1
    assert torch.equal(first, latents(plain))
    assert torch.equal(latents(engine), first)


def test_what_is_wrong_with_a_block_is_no_fault_of_the_compiler(tiny_models):
    engine = compiled(tiny_models["z-image"], Compiler())
    hook = engine.components.transformer.layers[0].register_forward_pre_hook(lambda module, x: (x[0][:, :, :7], *x[1:]))
    with pytest.raises(RuntimeError, match="size"):
        latents(engine)
    hook.remove()
    latents(engine)


def test_memory_that_runs_out_in_the_compiler_is_no_fault_of_it(tiny_models):
    full = [True]

    def compiler(graph, inputs):
        if full:
            full.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return graph.forward

    engine, plain = compiled(tiny_models["z-image"], compiler), Engine.load(tiny_models["z-image"], device="cpu")
    with pytest.warns(CandelaWarning, match=r"20.00 MiB more could not be had \(denoise\). One step down"):
        found = latents(engine)
    assert str(engine.residency.rung) == "released"
    torch.testing.assert_close(found, latents(plain))


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.GELU(), torch.nn.GELU()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.skipif(os.name == "nt", reason="the compiler here is a shell script")
@pytest.mark.parametrize("chosen", [False, True])
def test_torch_s_own_compiler_without_python_s_headers(tmp_path, monkeypatch, chosen):
    """Really: g++, and a header that is not there. Where code is kept, and what is left of that in the process."""
    import torch._inductor.config as inductor

    home, mine = tmp_path / "home", tmp_path / "mine"
    monkeypatch.setenv("CANDELA_HOME", str(home))
    monkeypatch.delenv(compiling.CACHE, raising=False)
    if chosen:
        monkeypatch.setenv(compiling.CACHE, str(mine))
    script = tmp_path / "g++"
    script.write_text('#!/bin/sh\nexec g++ -include /nowhere/Python.h "$@"\n')
    script.chmod(0o755)
    model, x = Layers(), torch.ones(3, 4)
    expected = model(x)
    compile_blocks(model)
    with inductor.patch({"cpp.cxx": (str(script),), "cpp_cache_precompile_headers": False}), torch.no_grad():
        with pytest.warns(CandelaWarning, match=r"/nowhere/Python\.h: No such file.*python3-dev") as told:
            assert torch.equal(model(x), expected)
    assert [each.category for each in told].count(CandelaWarning) == 1
    assert any((mine if chosen else home / "cache" / "compiled").rglob("*.cpp"))
    if chosen:
        assert os.environ[compiling.CACHE] == str(mine)
    else:  # torch sets it itself
        assert os.environ.get(compiling.CACHE, compiling.TORCHS_OWN).startswith(compiling.TORCHS_OWN)
