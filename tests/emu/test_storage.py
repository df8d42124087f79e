# SPDX-License-Identifier: Apache-2.0
"""The storage tier's models: references, caches, images, bad input."""

import itertools

import numpy as np
import pytest

from emu.config import Storage, load_config
from emu.errors import UserError
from emu.storage import (
    Decode,
    References,
    decode,
    demand_cache,
    due_times,
    fewest_fills,
    final_image,
    initial_image,
    random_numbers,
)

SMALL = Decode(layers=2, dense=3, cache=1, experts=3, expert_pages=2, chosen=1, table=4, rows=2,
               tokens=5, seed=3)


def stream(pages, write=()):
    """References of bare pages."""
    count = len(pages)
    return References(np.array(pages), np.zeros(count, np.int64),
                      np.isin(np.arange(count), write), np.zeros(count, np.bool_))


def test_a_decode_uses_layers_in_order_and_every_page_once_a_token():
    references = decode(SMALL)
    assert len(references) == SMALL.tokens * (2 + 2 * (3 + 1 + 2))
    assert int(references.last.sum()) == SMALL.tokens and references.last[-1]
    assert int(references.page.max()) < SMALL.pages == 4 + 2 * (3 + 1 + 6)
    for page, region in zip(references.page, references.region, strict=True):
        described = references.regions[region]
        assert described.first <= page < described.first + described.pages
    token = slice(2, 14)
    assert (np.diff(references.region[token]) >= 0).all()
    # Keys and values: the one page of them is written, once a layer and token.
    assert int(references.write.sum()) == 2 * SMALL.tokens


def test_the_stream_order_is_a_loop_of_all_regions():
    regions = decode(SMALL).regions
    at, seen = 0, []
    for _ in regions:
        seen.append(at)
        at = regions[at].child
    assert at == 0 and sorted(seen) == list(range(len(regions)))
    assert [region.optional for region in regions].count(True) == 6
    frequencies = [region.frequency for region in regions if region.optional]
    # One of three experts is chosen: the frequencies of a layer's add up to one use.
    assert abs(sum(frequencies[:3]) - 255) <= 2


def test_seeds_draw_other_tokens_of_one_model():
    one, same, other = (decode(Decode(tokens=8, seed=seed)) for seed in (1, 1, 2))
    assert (one.page == same.page).all() and (one.page != other.page).any()
    likely = [[r.frequency for r in x.regions] for x in (one, other)]
    assert np.abs(np.subtract(*likely)).max() < 40


def test_zipf_makes_some_experts_likelier():
    spread = [np.std([r.frequency for r in decode(Decode(zipf=zipf)).regions if r.optional])
              for zipf in (0.0, 1.0)]
    assert spread[1] > 3 * spread[0]


@pytest.mark.parametrize(("shape", "message"), [
    (Decode(chosen=9), "chosen 9: there are 8 experts"),
    (Decode(tokens=0), "at least one layer, one page of weights and one token"),
    (Decode(rows=-1), "at least one layer"),
])
def test_impossible_decodes(shape, message):
    with pytest.raises(UserError, match=message):
        decode(shape)


def test_a_ring_of_frames():
    found = demand_cache(stream([1, 2, 3, 1, 4, 1, 2], write=(0, 4)), 3)
    # 4 takes the frame of 1, which was written, 1 that of 2, 2 that of 3.
    assert (found.fills, found.evictions, found.write_backs, found.flushed) == (6, 3, 1, 1)
    assert demand_cache(stream([5, 6, 5, 6]), 2).evictions == 0


def test_random_frames_keep_part_of_a_loop():
    loop = stream(list(range(40)) * 50)
    ring, random = (demand_cache(loop, 32, kind).fills for kind in ("ring", "random"))
    assert ring == len(loop) and fewest_fills(loop, 32) < random < 0.6 * len(loop)
    # Of 65,535 states each comes once.
    numbers = list(itertools.islice(random_numbers(), 65_535))
    assert len(set(numbers)) == 65_535 and 0 not in numbers


def test_fewest_fills_is_what_the_best_of_all_choices_reaches():
    def best(pages, held=frozenset()):
        while pages and pages[0] in held:
            pages = pages[1:]
        if not pages:
            return 0
        kept = [held] if len(held) < 3 else [held - {victim} for victim in held]
        return 1 + min(best(pages[1:], rest | {pages[0]}) for rest in kept)

    rng = np.random.default_rng(5)
    for _ in range(30):
        pages = rng.integers(0, 5, 9).tolist()
        found = fewest_fills(stream(pages), 3)
        assert found == best(pages) <= demand_cache(stream(pages), 3).fills


def test_due_times():
    storage = Storage(latency=100, bytes_per_cycle=4)
    assert storage.page_cycles == 1024
    # The second waits for the medium, the third for the write between, the last for itself alone.
    assert due_times(storage, [(0, False), (5, False), (6, True), (7, False), (9000, False)]) == [
        1124, 2148, 3172, 4196, 10124]


def test_writes_change_the_first_words_only_and_undo_themselves_never():
    storage = Storage(page_kib=1, pages=16)
    image = initial_image(storage, 1)
    changed = final_image(storage, image, stream([3, 3, 5], write=(0, 1)))
    rows = np.flatnonzero((image != changed).any(axis=1))
    assert rows.tolist() == list(range(3 * 64, 3 * 64 + 16))
    assert (initial_image(storage, 1) == image).all()


@pytest.mark.parametrize(("setting", "message"), [
    ("storage.page_kib=3", "storage.page_kib must be a power of two, 1 to 16, not 3"),
    ("storage.pages=100", "storage.pages must be a power of two, 16 to 4096, not 100"),
    ("storage.bytes_per_cycle=0", "greater than or equal to 1"),
    ("storage.queue=65", "less than or equal to 64"),
])
def test_impossible_devices(setting, message):
    with pytest.raises(UserError, match=message):
        load_config("base", [setting])


def test_page_sizes():
    for kib, rate in itertools.product((1, 4, 16), (1, 4, 7, 16)):
        storage = Storage(page_kib=kib, bytes_per_cycle=rate)
        assert storage.page_words == 64 * kib
        assert storage.page_cycles == -(-1024 * kib // rate)
