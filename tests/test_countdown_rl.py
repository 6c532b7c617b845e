"""The pure parts of the reinforcement learning benchmark: intervals and summaries against numbers worked by hand."""

import importlib
import json

import numpy as np
import pytest

benchmark = importlib.import_module("benchmarks.countdown_rl")
Run, Settings = benchmark.Run, benchmark.Settings


def evaluation(greedy, sampled, control):
    """A result on two problems with two samples each: correct samples per problem, and one domain's control."""

    def method(name, num_correct, domain=None, strategies=None):
        return {
            "method": {"name": name, "domain": domain},
            "mean_at_1": sum(num_correct) / 4,
            "pass_at_k": {"2": sum(count > 0 for count in num_correct) / 2},
            "strategies": strategies or {"add": 0.75, "subtract": 0.25},
            "num_correct": num_correct,
        }

    return [
        method("greedy", greedy),
        method("sampling", sampled),
        method("prior", sampled),
        method("domain add", sampled, "add", {"add": control}),
        method("domain subtract", sampled, "subtract", {"add": 1.0}),
    ]


def result(greedy, sampled, control, history=None):
    content = {
        "settings": {"num_samples": 2},
        "evaluation": {"methods": evaluation(greedy, sampled, control), "environment": {"commit": "c"}},
    }
    return content | ({"history": history} if history else {})


def test_t_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653, so 2 +- 4.302653 / sqrt(3)
    figure = benchmark.t_interval([1.0, 2.0, 3.0])
    assert figure["mean"] == 2.0
    assert figure["interval"] == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-5)
    assert figure["seeds"] == [1.0, 2.0, 3.0]


def test_one_seed_has_no_interval():
    assert benchmark.t_interval([0.5]) == {"seeds": [0.5], "mean": 0.5, "interval": None}
    assert benchmark.cell(benchmark.t_interval([0.5])) == "0.500"


def test_bootstrap_interval():
    assert benchmark.bootstrap_interval(np.full(10, 0.25)) == [0.25, 0.25]
    # 100 problems, half +1 and half -1: the mean of a resample has standard deviation 0.1
    lower, upper = benchmark.bootstrap_interval(np.array([1.0, -1.0] * 50))
    assert (lower, upper) == pytest.approx((-0.196, 0.196), abs=0.03)
    assert benchmark.bootstrap_interval(np.array([1.0, -1.0] * 50)) == [lower, upper]


def test_figures_of():
    figures = benchmark.figures_of(result([2, 0], [1, 0], 0.5))
    assert figures == {
        "greedy": 0.5,
        "sampled mean@1": 0.25,
        "sampled pass@2": 0.5,
        "prior mean@1": 0.25,
        "prior pass@2": 0.5,
        "control": 0.25,  # half of the answers under add follow it, none of those under subtract
        "control add": 0.5,
        "control subtract": 0.0,
    }


def test_differences_are_paired_by_seed():
    plain = [result([2, 0], [1, 0], 1.0), result([0, 0], [0, 0], 1.0)]
    guided = [result([2, 2], [1, 1], 1.0), result([2, 0], [2, 0], 1.0)]
    summary = benchmark.summarise(guided, plain)
    greedy = summary["minus_plain"]["greedy"]
    # seeds: 1 - 0.5 and 0.5 - 0; no spread, although either method's accuracy spreads
    assert greedy["seeds"] == [0.5, 0.5] and greedy["interval"] == [0.5, 0.5]
    assert summary["figures"]["greedy"]["interval"][0] < 0.75 < summary["figures"]["greedy"]["interval"][1]
    # problems, averaged over seeds: 0.5 and 0.5
    assert greedy["interval_over_problems"] == [0.5, 0.5]
    assert summary["strategies"]["sampling"] == {"add": 0.75, "subtract": 0.25}


def test_curves_keep_the_steps_that_every_seed_has():
    histories = [
        [{"step": 5, "reward": 0.1}, {"step": 10, "reward": 0.2}, {"step": 10, "validation/greedy": 0.3}],
        [{"step": 10, "reward": 0.4}, {"step": 10, "validation/greedy": 0.5}],
    ]
    curves = benchmark.curves_of([result([0, 0], [0, 0], 1.0, history) for history in histories])
    assert curves == {
        "reward": {"steps": [10], "seeds": [[0.2], [0.4]]},
        "validation": {"steps": [10], "seeds": [[0.3], [0.5]]},
    }


def test_washout_is_read_half_way():
    def method(steps, seeds, gains):
        return {
            "curves": {"sensitivity": {"steps": steps, "seeds": seeds}},
            "minus_plain": {"greedy": {"seeds": gains}},
        }

    methods = {
        "grpo/plain": {"curves": {}},
        "grpo/two-phase": method([0, 4, 8], [[0.4, 0.3, 0.0], [0.2, 0.01, 0.4]], [0.02, -0.1]),
    }
    assert benchmark.washout(methods, [5, 6], num_steps=9) == [
        {"run": "grpo/two-phase", "seed": 6, "left": 0.05, "greedy_minus_plain": -0.1},
        {"run": "grpo/two-phase", "seed": 5, "left": 0.75, "greedy_minus_plain": 0.02},
    ]


def test_report_table_and_plot(tmp_path):
    history = [{"step": step, "reward": 0.1, "validation/greedy": 0.2, "latent/sensitivity": 0.1} for step in (0, 5)]
    results = {}
    for seed in (0, 1):
        results[Run(seed, "none", "plain")] = result([0, 0], [0, 0], 1.0)
        results[Run(seed, "grpo", "plain")] = result([2, 0], [1, 0], 1.0, history)
        results[Run(seed, "grpo", "two-phase")] = result([2, 2], [1, 0], 1.0, history)
        results[Run(seed, "grpo", "plain", "palette")] = result([2, 2], [1, 0], 1.0, history)
    settings = Settings(num_steps=3, prompts_per_step=2, group_size=4, num_samples=2)
    report = json.loads(benchmark.compact(benchmark.report_of(results, settings, [0, 1])))
    assert list(report["methods"]) == ["no RL", "grpo/plain", "grpo/two-phase", "grpo/plain/from palette"]
    assert report["rollouts_per_run"] == 24 and report["methods"]["grpo/plain"]["commits"] == ["c"]
    assert [name for name, method in report["methods"].items() if "minus_plain" in method] == ["grpo/two-phase"]
    assert "| grpo/two-phase | +0.500 [+0.500, +0.500] | [+0.000, +1.000] |" in benchmark.table(report)
    assert "| above | 2 | +0.500 |" in benchmark.table(report)
    benchmark.plot(report, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_finished_runs_are_read_and_other_settings_refused(tmp_path):
    run, settings = Run(0, "grpo", "plain"), Settings()
    folder = run.folder(tmp_path)
    benchmark.write_json(folder / "result.json", {"done": True})
    assert benchmark.result_of(run, settings, tmp_path) == {"done": True}
    with pytest.raises(ValueError, match="holds a run with other settings"):
        benchmark.result_of(run, Settings(num_steps=1), tmp_path)
