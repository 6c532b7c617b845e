"""Codes, ids and the generator, against published vectors and an independent implementation."""

import random

import pytest
import torch
from scipy.stats import norm

from reasoning_palette.modeling_palette.latent_codes import (
    LatentCodes,
    normal_quantile_table,
    normals_from_codes,
    philox4x32,
)
from reasoning_palette.modeling_palette.latent_embedding import ExplicitLatents

CODES = LatentCodes(id_base=1 << 24, num_codes=1 << 20, max_prefix_tokens=64)

# Known-answer vectors of Philox4x32-10 that its authors publish with Random123: counter, key, output.
PHILOX_VECTORS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS)
def test_philox_published_vectors(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def python_philox(counter, key):
    """Philox4x32-10 with Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_normals_equal_an_independent_implementation():
    seed, latent_dim = (7 << 32) + 5, 11
    codes, positions = torch.tensor([0, 3, (1 << 20) + 9, 30 << 20]), torch.tensor([0, 2, 63, 5])
    drawn = normals_from_codes(codes, positions, latent_dim, seed, normal_quantile_table())
    for row, (code, position) in enumerate(zip(codes.tolist(), positions.tolist(), strict=True)):
        numbers = []
        for block in range(2):
            for word in python_philox((block, position, code & 0xFFFFFFFF, code >> 32), (5, 7)):
                numbers += [word & 0xFFFF, word >> 16]
        expected = [(1 if n < 32768 else -1) * norm.ppf(0.5 + (n % 32768 + 0.5) / 65536) for n in numbers[:latent_dim]]
        torch.testing.assert_close(drawn[row], torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_normals_are_standard_and_independent():
    codes = torch.arange(20_000)
    drawn = normals_from_codes(codes, torch.zeros_like(codes), 64, 0, normal_quantile_table())
    next_position = normals_from_codes(codes, torch.ones_like(codes), 64, 0, normal_quantile_table())
    # 1.28 million numbers: standard errors 0.0009 (mean) and 0.0012 (variance); correlations 0.007
    assert abs(float(drawn.mean())) < 0.004
    assert abs(float(drawn.var()) - 1) < 0.006
    assert float((torch.corrcoef(drawn.T) - torch.eye(64)).abs().max()) < 0.04
    assert abs(float((drawn * next_position).mean())) < 0.004
    assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 0.004


def test_a_draw_does_not_depend_on_its_batch():
    table = normal_quantile_table()
    codes, positions = torch.arange(50), torch.arange(50) % 8
    together = normals_from_codes(codes, positions, 5, 1, table)
    alone = torch.cat([normals_from_codes(codes[i : i + 1], positions[i : i + 1], 5, 1, table) for i in range(50)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, normals_from_codes(codes, positions, 5, 2, table))


def test_ids_round_trip_and_stay_in_int32():
    last = CODES.num_sources * CODES.num_codes - 1
    codes = torch.tensor([0, 1, 5_000_000, last])
    ids = CODES.to_ids(codes, 64)
    assert ids.shape == (4, 64)
    assert int(ids.min()) == 1 << 24
    assert int(ids.max()) < CODES.explicit_base < 1 << 31
    found_codes, positions = CODES.from_ids(ids)
    assert torch.equal(found_codes, codes[:, None].expand(4, 64))
    assert torch.equal(positions, torch.arange(64).expand(4, 64))


def test_tiled_prefix_repeats_one_id():
    ids = CODES.to_ids(torch.tensor([17]), 3, latent_tile=True)
    assert ids.tolist() == [[(1 << 24) + 17 * 64] * 3]


def test_default_layout_has_31_sources():
    assert CODES.num_sources == 31
    assert CODES.num_explicit == (1 << 31) - CODES.explicit_base > 50_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1 << 24, 1 << 26, 64), "collide with the end of int32.*Lower num_codes"),
        ((0, 16, 4), "`id_base` must be at least 1, got 0"),
        ((16, 16, 0), "`max_prefix_tokens` must be at least 1, got 0"),
    ],
)
def test_impossible_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentCodes(*arguments)


def test_a_vocabulary_that_reaches_the_latent_ids_is_refused():
    CODES.check_vocabulary(1 << 24)
    with pytest.raises(ValueError, match="collides with the latent ids.*Set `latent_id_base`"):
        CODES.check_vocabulary((1 << 24) + 1)


def test_explicit_latents_find_room_wherever_there_is_some():
    """Against a list of which ids are in use."""
    layout = LatentCodes(id_base=(1 << 31) - 64, num_codes=3, max_prefix_tokens=16)
    explicit, in_use, lent = ExplicitLatents(layout), [None] * layout.num_explicit, []
    chosen, refused = random.Random(0), 0
    for step in range(2000):
        if lent and chosen.random() < 0.5:
            block, offsets = lent.pop(chosen.randrange(len(lent)))
            block.__exit__(None, None, None)
            for offset in offsets:
                in_use[offset] = None
            continue
        latents = torch.full((chosen.randint(1, 8), 2), float(step))
        free = "".join("x" if one is not None else " " for one in in_use)
        block = explicit.lend(latents)
        if " " * len(latents) not in free:
            refused += 1
            with pytest.raises(RuntimeError, match="explicit latents do not fit in the 16 ids"):
                block.__enter__()
            continue
        offsets = (block.__enter__() - layout.explicit_base).tolist()
        assert free[offsets[0] : offsets[-1] + 1] == " " * len(latents)
        for offset in offsets:
            in_use[offset] = float(step)
        lent.append((block, offsets))
        used = [offset for offset, one in enumerate(in_use) if one is not None]
        found = explicit.look_up(torch.tensor(used) + layout.explicit_base, 2)
        assert found[:, 0].tolist() == [in_use[offset] for offset in used]
    assert refused > 100
