"""Guided fractions against numbers worked by hand, exact counts, and draws that depend on their key only."""

import math

import pytest
import torch

from reasoning_palette.trainers.latent_draws import DrawCounter, keyed_generator
from reasoning_palette.trainers.latent_schedule import LatentSchedule


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (LatentSchedule("two-phase"), 0.0, 1.0),
        (LatentSchedule("two-phase"), 0.49, 1.0),
        (LatentSchedule("two-phase"), 0.5, 0.0),
        (LatentSchedule("two-phase", end=0.2), 0.19, 1.0),
        (LatentSchedule("two-phase", end=0.2), 0.2, 0.0),
        (LatentSchedule("linear-decay"), 0.0, 1.0),
        (LatentSchedule("linear-decay"), 0.25, 0.75),
        (LatentSchedule("linear-decay"), 1.0, 0.0),
        (LatentSchedule("linear-decay", end=0.5), 0.25, 0.5),
        (LatentSchedule("linear-decay", end=0.5), 0.75, 0.0),
        (LatentSchedule("cosine-decay"), 0.0, 1.0),
        (LatentSchedule("cosine-decay"), 0.5, 0.5),
        (LatentSchedule("cosine-decay"), 1 / 3, 0.75),
        (LatentSchedule("cosine-decay", end=0.5), 0.5, 0.0),
        (LatentSchedule("constant"), 0.0, 1.0),
        (LatentSchedule("constant"), 1.0, 1.0),
        (LatentSchedule("constant", fraction=0.5), 0.7, 0.5),
        (LatentSchedule("linear-decay", fraction=0.5), 0.5, 0.25),
    ],
)
def test_rho(schedule, progress, expected):
    assert schedule.rho(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "group_size", "expected"),
    [
        (0.0, 8, 8),
        (0.25, 8, 6),
        (0.5, 8, 4),
        (0.9, 8, 1),  # 0.8 + 0.5 = 1.3
        (0.95, 8, 0),  # 0.4 + 0.5 = 0.9
        (15 / 16, 8, 1),  # a tie is guided: 0.5 + 0.5
        (0.9, 5, 1),  # a tie that 1 - 0.9 in floating point would lose
        (1.0, 8, 0),
        (0.5, 3, 2),
    ],
)
def test_guided_rollouts_are_counted_exactly(progress, group_size, expected):
    assert LatentSchedule("linear-decay").num_guided(progress, group_size) == expected


def test_count_never_leaves_the_group():
    for name in ("two-phase", "linear-decay", "cosine-decay", "constant"):
        for step in range(101):
            assert 0 <= LatentSchedule(name).num_guided(step / 100, 8) <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two_phase"}, "`latent_schedule` must be one of two-phase, linear-decay.*got 'two_phase'"),
        ({"name": "constant", "end": 0.5}, "never reaches 0"),
        (
            {"name": "two-phase", "end": 0.0},
            r"`latent_schedule_end` must be a fraction of training in \(0, 1\], got 0.0",
        ),
        ({"name": "two-phase", "end": 1.5}, "got 1.5"),
        ({"name": "two-phase", "fraction": -0.1}, r"`latent_fraction` must be in \[0, 1\], got -0.1"),
        ({"name": "two-phase", "fraction": math.nan}, "got nan"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentSchedule(**arguments)


def test_bad_progress_is_refused():
    with pytest.raises(ValueError, match=r"`progress` must be in \[0, 1\], got 1.5"):
        LatentSchedule("constant").rho(1.5)


def test_draws_depend_on_every_part_of_their_key():
    key = (0, "train", 3, 0, 7)

    def draw(*key):
        return torch.randint(1 << 20, (4,), generator=keyed_generator(*key)).tolist()

    assert draw(*key) == draw(*key)
    others = [(1, *key[1:]), (0, "eval", 3, 0, 7), (0, "train", 4, 0, 7), (0, "train", 3, 1, 7), (0, "train", 3, 0, 8)]
    assert len({tuple(draw(*other)) for other in [key, *others]}) == 6


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.randn(3, generator=keyed_generator(0, "train", 0, 0, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_counter_starts_over_with_step_and_mode():
    counter = DrawCounter()
    calls = [("train", 0), ("train", 0), ("train", 1), ("eval", 1), ("eval", 1), ("train", 1), ("train", 2)]
    assert [counter.take(*call, count=1) for call in calls] == [0, 1, 0, 0, 1, 0, 0]
    assert [counter.take("train", 3, count) for count in (4, 3, 1)] == [0, 4, 7]
