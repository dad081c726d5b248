"""The bench runs for real, on tiny models: what it says, and that both sides do the same work."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from candela.bench import comfyui, report, suites
from candela.bench.measuring import Timing, alternate, difference, flops, matmul_rate
from candela.bench.models import FULL, QWEN, TINY, random_pair
from candela.cli.main import app
from candela.engine.cards import Machine
from candela.engine.ladder import Placement, Rung
from candela.engine.placing import Shelf
from candela.engine.planning import measured
from candela.errors import InvalidRequest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases():
    """The gpu suite as it is, in a tiny configuration on the CPU."""
    return list(suites.gpu(2, dimensions=TINY, sizes=(64, 96), steps=2, device=CPU, dtype=torch.float32, fast="int8"))


def test_the_gpu_suite_compares_exact_and_fast_mode_with_diffusers(cases):
    assert [case.title for case in cases[:-1]] == [f"tiny Z-Image, {side}x{side}, 2 steps" for side in (64, 96)]
    for case in cases[:-1]:
        assert list(case.timings) == ["candela", "candela fast int8", "diffusers"]
        assert all(len(timing.seconds) == 2 for timing in case.timings.values())
        assert case.timings["candela"].difference <= 1
        assert case.timings["candela fast int8"].difference > 0, "fast mode computed what exact mode did"
        assert case.timings["diffusers"].difference is None
        assert case.ratio("diffusers") == 1
        assert set(case.reached) == {"candela", "candela fast int8"}
        assert all(0 < reached < 1 for reached in case.reached.values())


def test_the_gpu_suite_ends_with_streamed_weights(cases):
    case = cases[-1]
    assert case.title == "tiny Z-Image, 96x96, 2 steps, streamed within 10 GB"
    assert list(case.timings) == ["candela streamed", "candela"]
    assert case.reference == "candela"


def test_streamed_weights_come_and_go(monkeypatch):
    """What the case measures: every block is brought anew in every step."""
    brought = []
    bring = Shelf.place
    monkeypatch.setattr(
        Shelf, "place", lambda shelf, number, tensors: (brought.append(number), bring(shelf, number, tensors))
    )
    assert "streamed within" in suites.streamed(1, TINY, 64, 2, CPU, torch.float32).title
    blocks = 3 - 1 + 2 * (2 + 1) + 1  # of the text encoder but the last; layers and noise refiner; context refiner
    assert sum(number >= 0 for number in brought) >= 2 * blocks  # in the warm-up and in the run


def test_blocks_that_fit_within_the_cap_stay(monkeypatch):
    deep = replace(TINY, transformer=TINY.transformer | {"n_layers": 24})
    pair = random_pair(deep, CPU, torch.float32)
    known = measured(pair.checkpoint, pair.engine.family, torch.float32, "cpu", (64, 64))
    stages = known.stages(Rung(Placement.STREAMED), Machine("", "cuda", 0, 0, 1, 1, 1))
    least = stages[1].weights + 2 * max(stage.activations for stage in stages)
    monkeypatch.setattr(suites, "CAP", least + 7 * known.weights["transformer"].block)
    assert "2 steps, streamed but for 7 blocks within" in suites.streamed(1, deep, 64, 2, CPU, torch.float32).title


def test_the_cpu_suite_measures_text_alone_and_again():
    titles = {}
    for case in suites.cpu(2, dimensions=TINY, size=64, steps=2):
        titles[case.title] = case
        difference = case.timings["candela"].difference
        assert difference is None or difference <= 1
    assert list(titles) == [
        "demo, whole request, 128x128, 8 steps", "tiny Z-Image, whole request, 64x64, 2 steps",
        "tiny Z-Image, text encoding", "tiny Z-Image, the same prompt again",
    ]  # fmt: skip
    assert titles["tiny Z-Image, the same prompt again"].ratio("candela") < 0.2


def test_the_text_is_encoded_in_every_run_of_every_case():
    """But for the case that asks for the same prompt again."""
    pair = random_pair(TINY, CPU, torch.float32)
    encoded = []
    pair.engine.components.text_encoder.layers[0].register_forward_hook(lambda *_: encoded.append(1))
    for sides, expected in (
        (suites.whole(pair, 64, 1), 3), (suites.whole(pair, 64, 1), 3), (suites.text_only(pair), 3),
        (suites.text_only(pair, again=True), 1),
    ):  # fmt: skip
        encoded.clear()
        alternate({"candela": sides["candela"]}, 2, CPU)
        assert len(encoded) == expected


def test_random_pictures_prove_something():
    """Both sides share the weights, and the picture has contents: an error in either would be seen."""
    pair = random_pair(TINY, CPU, torch.float32)
    ours, theirs = pair.engine.components.transformer, pair.pipeline.transformer
    assert ours is not theirs
    assert all(a is b or a.data_ptr() == b.data_ptr() for a, b in zip(ours.parameters(), theirs.parameters()))
    assert "forward" not in vars(theirs.layers[0])
    pictures = [suites.whole(pair, 64, 2)["candela"](run) for run in (1, 2)]
    extremes = pictures[0].convert("L").getextrema()
    assert extremes[1] - extremes[0] > 30
    assert difference(*pictures) > 10


def test_full_size_is_z_image():
    """6.15 billion parameters beside a text encoder of 4.0, by the classes themselves."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.device("meta"):
        transformer = ZImageTransformer2DModel(**FULL.transformer)
        text_encoder = Qwen3Model(Qwen3Config(**QWEN))
    counts = [sum(p.numel() for p in module.parameters()) / 1e9 for module in (transformer, text_encoder)]
    assert counts == pytest.approx([6.155, 4.022], abs=0.01)


def test_sides_take_turns_and_the_first_run_does_not_count():
    calls = []
    sides = {name: lambda run, name=name: calls.append((run, name)) for name in "ab"}
    timings = alternate(sides, 3, CPU)
    assert calls == [(0, "b"), (0, "a"), (1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_differences_are_the_largest_of_all_runs():
    def side(values):
        return lambda run: Image.new("RGB", (4, 4), (values[run], 0, 0))

    timings = alternate({"a": side([0, 9, 2]), "b": side([0, 2, 2])}, 2, CPU)
    assert timings["a"].difference == 7


@pytest.mark.skipif("not __import__('os').path.exists('/proc/self/clear_refs')")
def test_peak_memory_is_that_of_the_run():
    def large(run):
        return torch.ones(100 * 2**18).sum()  # 100 MiB

    timings = alternate({"large": large, "small": lambda run: None}, 3, CPU)
    assert 90 * 2**20 < timings["large"].peak_bytes - timings["small"].peak_bytes < 130 * 2**20


def test_flops_are_counted_and_the_rate_is_one():
    a, b = torch.randn(64, 32), torch.randn(32, 16)
    assert flops(lambda: a @ b) == 2 * 64 * 32 * 16
    assert 1e8 < matmul_rate(CPU, torch.float32, seconds=0.05) < 1e14


def test_report(cases):
    results = json.loads(json.dumps(report.as_json("gpu", cases, CPU)))
    first = results["cases"][0]
    assert first["reference"] == "diffusers"
    assert first["sides"]["diffusers"]["ratio"] == 1
    assert first["sides"]["candela"]["difference of 255"] <= 1
    assert results["versions"]["torch"] == torch.__version__
    rows = report.rows(cases[0])
    assert [row[0] for row in rows] == ["candela", "candela fast int8", "diffusers"]
    assert rows[0][-1].endswith("%")


def test_chart_has_a_bar_for_each_side_as_long_as_its_time():
    case = suites.Case("a <title>", {"candela": Timing((1.0, 1.0)), "diffusers": Timing((2.0, 2.0))}, {})
    tree = ElementTree.fromstring(report.chart("title", [case]))
    bars = [
        float(rect.get("width"))
        for rect in tree.iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("fill") != "white"
    ]
    assert bars[0] * 2 == pytest.approx(bars[1])
    assert "a <title>" in [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_command_writes_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("candela.cli.bench.RUNS", {"quick": 2})
    outcome = CliRunner().invoke(app, ["bench", "--json"])
    assert outcome.exit_code == 0, outcome.output
    results = json.loads(outcome.stdout)
    assert results["cases"][0]["sides"]["candela"]["difference of 255"] <= 1
    folder = tmp_path / "benchmarks" / "results"
    assert json.loads((folder / "bench_quick.json").read_text()) == results
    ElementTree.parse(folder / "bench_quick.svg")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and the suite would run")
def test_without_a_gpu_the_command_says_what_it_would_measure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["bench", "--suite", "gpu"])
    assert outcome.exit_code == 2
    for word in ("512x512", "2048x2048", "8 steps", "exact and fast", "diffusers", "matrix product rate", "40 GB"):
        assert word in " ".join(outcome.output.split()), word
    assert not list(tmp_path.iterdir())


def test_unknown_suite():
    outcome = CliRunner().invoke(app, ["bench", "--suite", "fpu"])
    assert outcome.exit_code == 2
    assert "quick, cpu, gpu" in outcome.output


def test_unknown_side_and_comfyui_beside_a_small_suite():
    for against, words in (("diffusers,sglang", "diffusers, comfyui"), ("comfyui", "--suite gpu")):
        outcome = CliRunner().invoke(app, ["bench", "--against", against])
        assert outcome.exit_code == 2
        assert words in " ".join(outcome.output.split())


def test_comfyui_needs_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(InvalidRequest, match="COMFYUI_DIR"):
        comfyui.checkout()
