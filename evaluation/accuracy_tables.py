"""Results of evaluations as Markdown tables: one group of results per benchmark and budget, means over its seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..modeling_palette.palette_card import escaped

Result = Mapping[str, Any]  # as `EvaluationResult.to_dict` has it, or its JSON


def by_settings(results: Iterable[Result]) -> list[list[Result]]:
    """Results that can stand in one table, which differ in seed alone, by seed."""
    return _grouped(results, settings_of)


def by_model(results: Iterable[Result]) -> list[list[Result]]:
    """The results of each model."""
    return _grouped(results, lambda result: result["model"])


def settings_of(result: Result) -> tuple:
    """What two results must share to be compared."""
    return tuple(result[name] for name in ("benchmark", "num_problems", "num_samples", "max_new_tokens"))


def describe_settings(group: Sequence[Result]) -> str:
    """The sentence above a table."""
    benchmark, problems, samples, tokens = settings_of(group[0])
    seeds = ", ".join(str(result["seed"]) for result in group)
    spread = "± is the standard error over problems" if len(group) == 1 else "means over seeds, lowest and highest"
    return (
        f"**`{escaped(benchmark)}`**: {problems:,} problems, {samples} samples per problem and method, at most "
        f"{tokens} new tokens, seed{'s' if len(group) > 1 else ''} {seeds}. pass@k is the unbiased estimator "
        f"([arXiv 2107.03374](https://arxiv.org/abs/2107.03374)) and {spread}. A method without chance is counted as "
        f"{samples} equal samples; a sample that cannot be graded counts as not correct."
    )


def accuracy_table(group: Sequence[Result]) -> str:
    """A row per method: pass@k for every budget, maj@k for the largest, distinct answers, ungradable samples.

    Where a benchmark has other graders, the smallest and the largest budget and the ungradable samples by them follow.
    """
    budgets = sorted({int(k) for result in group for method in result["methods"] for k in method["pass_at_k"]} - {1})
    last = f" maj@{budgets[-1]} |" if budgets else ""
    head = f"| method | L | pass@1 |{''.join(f' pass@{k} |' for k in budgets)}{last} distinct answers | ungradable |"
    ends = sorted({1, *budgets[-1:]})
    graders = list(dict.fromkeys(name for result in group for m in result["methods"] for name in _graders(m)))
    for grader in graders:
        head += "".join(f" {escaped(grader)} pass@{k} |" for k in ends) + f" {escaped(grader)} ungradable |"
    rows = [head, f"| --- |{' ---: |' * (head.count('|') - 2)}"]
    for name in method_names(group):
        methods = methods_named(group, name)
        first = methods[0]
        at_1 = f"{mean(method['mean_at_1'] for method in methods):.3f}"
        if len(methods) > 1:
            low, high = (round(end(method["mean_at_1"] for method in methods), 3) for end in (min, max))
            at_1 += f" ({low:.3f} to {high:.3f})"
        elif first["standard_error"] is not None:
            at_1 += f"\u00a0±\u00a0{first['standard_error']:.3f}"  # stays on one line
        cells = [escaped(name), str(first["method"]["num_prefix_tokens"] or "-"), at_1]
        cells += [f"{mean(_at(method['pass_at_k'], k) for method in methods):.3f}" for k in budgets]
        if budgets:
            cells.append(f"{mean(_at(method['maj_at_k'], budgets[-1]) for method in methods):.3f}")
        cells.append(f"{mean(method['distinct_answers'] for method in methods):.2f}")
        cells.append(str(sum(method["grades"]["ungradable"] for method in methods)))
        for grader in graders:
            figures = [_graders(method)[grader] for method in methods]
            cells += [f"{mean(_at(one['pass_at_k'], k) for one in figures):.3f}" for k in ends]
            cells.append(str(sum(one["grades"]["ungradable"] for one in figures)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def strategy_table(group: Sequence[Result]) -> str:
    """A row per method: the share of each strategy."""
    methods = [method for result in group for method in result["methods"]]
    labels = list(dict.fromkeys(label for method in methods for label in method["strategies"]))
    rows = [f"| method |{''.join(f' {escaped(label)} |' for label in labels)}", f"| --- |{' ---: |' * len(labels)}"]
    for name in method_names(group):
        shares = [mean(m["strategies"].get(label, 0.0) for m in methods_named(group, name)) for label in labels]
        rows.append(f"| {escaped(name)} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join(rows)


def methods_named(group: Sequence[Result], name: str) -> list[Result]:
    """The figures of a method, one per seed."""
    return [method for result in group for method in result["methods"] if method["method"]["name"] == name]


def method_names(group: Sequence[Result]) -> list[str]:
    """The methods of a group, in order."""
    return list(dict.fromkeys(method["method"]["name"] for result in group for method in result["methods"]))


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)


def _graders(method: Result) -> Mapping[str, Any]:
    """Figures of other graders; results of older versions have none."""
    return method.get("other_graders") or {}


def _at(figures: Mapping[Any, float], k: int) -> float:
    """JSON has turned the keys into text."""
    return figures[str(k)] if str(k) in figures else figures[k]


def _grouped(results: Iterable[Result], key: Any) -> list[list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return [sorted(group, key=lambda result: result["seed"]) for group in groups.values()]
