"""Two ranks on gloo against one process: the same draws, the same gradients, one good checkpoint."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import distributed_run
import pytest
import torch
from trainer_testing import tiny_palette_model
from transformers import AutoModelForCausalLM

TIMEOUT_SECONDS = 240
RL_CASES = ["grpo", "grpo-reference", "rloo"]
SFT_CASES = ["sft-prior", "sft-posterior", "sft-padding-free", "sft-packed", "sft-lora"]


def launch(folder, *strategies):
    """Runs strategies under torchrun on two ranks. Returns, by strategy, what either rank wrote."""
    tiny_palette_model().save_pretrained(folder / distributed_run.CHECKPOINT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    completed = subprocess.run(
        [*command, distributed_run.__file__, str(folder), *strategies],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    first_rank = [line for line in completed.stdout.splitlines() if line.startswith("[rank0]")]
    assert completed.returncode == 0, "\n".join(first_rank) or completed.stdout[-6000:]
    return {
        strategy: [torch.load(folder / f"{strategy}-rank{rank}.pt", weights_only=False) for rank in range(2)]
        for strategy in strategies
    }


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    """DDP and FSDP2: the folder and what either rank wrote."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return folder, launch(folder, "ddp", "fsdp2")


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory):
    """DeepSpeed ZeRO-3."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; the package does not depend on it")
    folder = tmp_path_factory.mktemp("zero3")
    return folder, launch(folder, "zero3")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The cases in one process, run as they are asked for."""
    folder, results = tmp_path_factory.mktemp("one_process"), {}
    tiny_palette_model().save_pretrained(folder / distributed_run.CHECKPOINT)

    def result_of(case):
        if case not in results:
            results[case] = distributed_run.run(case, folder / "runs" / case)
        return results[case]

    return result_of


def assert_same_draws(ranks, one):
    """The ranks' rows, put together batch by batch, are those of one process: latents, and texts where greedy."""
    assert len(one["draws"]) == distributed_run.STEPS
    for batch, expected in enumerate(one["draws"]):
        parts = [rank["draws"][batch] for rank in ranks]
        if isinstance(expected, tuple):
            prompts = [ids for _, _, rows in parts for ids in rows]
            assert prompts == expected[2]
            id_base = 1 << 24
            assert any(token >= id_base for ids in prompts for token in ids)
        elif expected.dtype == torch.int64:
            assert torch.equal(torch.cat(parts), expected)
        else:  # means of the posterior hang on weights, which agree to rounding after the first step
            torch.testing.assert_close(torch.cat(parts), expected, atol=1e-6, rtol=1e-6)


def assert_same_gradients(ranks, one):
    """To 1e-6 of the largest entry, at each step, for every parameter and on both ranks."""
    assert len(one["gradients"]) == distributed_run.STEPS
    for step, expected in enumerate(one["gradients"]):
        scale = max(1.0, *(value.abs().max().item() for value in expected.values()))
        for rank in ranks:
            for name, value in rank["gradients"][step].items():
                assert (value - expected[name]).abs().max() < 1e-6 * scale, (step, name)


def assert_same_end(ranks, one):
    """Weights to 1e-6 of one process's and equal on both ranks; the palette bit-identical everywhere."""
    for name, expected in one["weights"].items():
        assert (ranks[0]["weights"][name] - expected).abs().max() < 1e-6, name
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
    for rank in ranks:
        assert rank["broadcast"] == 0
        assert all(torch.equal(value, one["palette"][name]) for name, value in rank["palette"].items())
        assert rank["sensitivity"] == pytest.approx(one["sensitivity"], abs=1e-5)


def assert_resumed_from_whole_checkpoint(ranks):
    first, second = ranks
    assert "checkpoint-2' is torn" in first["warned"][0]
    assert first["warned"][0].endswith("checkpoint-1'.")
    assert second["warned"] == []  # one process speaks for all
    for rank in ranks:
        weights = rank["unbroken"]["weights"]
        assert all(torch.equal(value, weights[name]) for name, value in rank["resumed"]["weights"].items())


def assert_good_checkpoint(folder, weights):
    reloaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert {name for name, _ in reloaded.named_parameters()} == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in reloaded.named_parameters())
    palette = tiny_palette_model().palette.state_dict()
    assert all(torch.equal(value, palette[name]) for name, value in reloaded.palette.state_dict().items())
    names = {path.name for path in Path(folder).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "model.safetensors"} <= names


@pytest.mark.parametrize("case", [*SFT_CASES, *RL_CASES])
def test_two_ranks_draw_and_learn_as_one_process(replicated, alone, case):
    ranks, one = [rank[case] for rank in replicated[1]["ddp"]], alone(case)
    assert_same_draws(ranks, one)
    assert_same_gradients(ranks, one)
    assert_same_end(ranks, one)
    if case in RL_CASES:
        groups = [group for rewards in one["rewards"] for group in (rewards[:4], rewards[4:])]
        assert all(len(set(group)) > 1 for group in groups)  # otherwise every gradient is 0
        completions = [rank["completions"] for rank in ranks]
        assert [mine + theirs for mine, theirs in zip(*completions, strict=True)] == one["completions"]


def test_sampled_texts_may_differ_but_draws_do_not(replicated, alone):
    assert_same_draws([rank["grpo-sampled"] for rank in replicated[1]["ddp"]], alone("grpo-sampled"))


def test_accumulation_steps_instead_of_rows_draw_the_same(replicated, alone):
    ranks, one = [rank["accumulated"] for rank in replicated[1]["ddp"]], alone("sft-prior")
    drawn = [part for batch in zip(*(rank["draws"] for rank in ranks), strict=True) for part in batch]
    assert torch.equal(torch.cat(drawn), torch.cat(one["draws"]))
    assert_same_gradients(ranks, one)


@pytest.mark.parametrize("case", [*distributed_run.SHARDED_CASES, "sft-lora"])
def test_fsdp2_draws_and_learns_as_one_process(replicated, alone, case):
    ranks, one = [rank[case] for rank in replicated[1]["fsdp2"]], alone(case)
    assert {rank["type"] for rank in ranks} == {"DistributedType.FSDP"}
    assert_same_draws(ranks, one)
    assert_same_gradients(ranks, one)
    assert_same_end(ranks, one)


def assert_bfloat16_keeps_the_palette(ranks, one):
    for rank in ranks:
        assert all(torch.equal(value, one["palette"][name]) for name, value in rank["palette"].items())
        assert rank["sensitivity"] == pytest.approx(one["sensitivity"], abs=0.01)


def test_fsdp2_in_bfloat16_keeps_the_palette(replicated, alone):
    assert_bfloat16_keeps_the_palette([rank["bf16"] for rank in replicated[1]["fsdp2"]], alone("sft-posterior"))


@pytest.mark.parametrize(
    ("strategy", "case"), [("ddp", "sft-prior"), ("ddp", "grpo-sampled"), ("fsdp2", "sft-posterior")]
)
def test_ranks_resume_from_the_last_whole_checkpoint_bit_for_bit(replicated, strategy, case):
    folder, results = replicated
    ranks = [rank[f"torn {case}"] for rank in results[strategy]]
    assert_resumed_from_whole_checkpoint(ranks)
    run = folder / strategy / ("torn" if strategy == "fsdp2" else case)
    assert_good_checkpoint(run / "checkpoint-2", ranks[0]["resumed"]["weights"])


def test_what_ranks_cannot_do_is_refused(replicated):
    for rank in replicated[1]["ddp"]:
        assert "The 2 processes have different palettes" in rank["refusal"]
    for rank in replicated[1]["fsdp2"]:
        assert "Set `fsdp_cpu_ram_efficient_loading: false`" in rank["refusal"]
        assert "FSDP 1 casts buffers to bf16" in rank["refusal of version 1"]


@pytest.mark.parametrize("case", distributed_run.SHARDED_CASES)
def test_zero3_draws_and_learns_as_one_process(partitioned, alone, case):
    """DeepSpeed hands modules aliases of their inputs, and holds weights of shape 0 between forwards."""
    ranks, one = [rank[case] for rank in partitioned[1]["zero3"]], alone(case)
    assert {rank["type"] for rank in ranks} == {"DistributedType.DEEPSPEED"}
    assert_same_draws(ranks, one)
    assert_same_end(ranks, one)


def test_zero3_in_bfloat16_keeps_the_palette(partitioned, alone):
    assert_bfloat16_keeps_the_palette([rank["bf16"] for rank in partitioned[1]["zero3"]], alone("sft-posterior"))


def test_zero3_resumes_from_the_last_whole_checkpoint_bit_for_bit(partitioned):
    folder, results = partitioned
    ranks = [rank["torn sft-posterior"] for rank in results["zero3"]]
    assert_resumed_from_whole_checkpoint(ranks)
    assert_good_checkpoint(folder / "zero3" / "sft-posterior" / "checkpoint-2", ranks[0]["resumed"]["weights"])


def test_latents_survive_hooks_that_replace_the_embeddings_input():
    model = tiny_palette_model()
    ids = torch.cat([model.latent_ids(model.draw_codes(1, domain="math"), 2), torch.tensor([[5, 6]])], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        handle = model.get_input_embeddings().register_forward_pre_hook(
            lambda module, args: (args[0].view_as(args[0]),)
        )
        assert torch.equal(model(input_ids=ids).logits, expected)
        handle.remove()
        assert not torch.equal(model(input_ids=ids.clamp(max=6)).logits, expected)
