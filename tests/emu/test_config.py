# SPDX-License-Identifier: Apache-2.0
"""Every preset loads, unknown keys and impossible machines are refused by name."""

import numpy as np
import pytest

from emu.config import (
    PRESETS,
    SEGMENT_WORDS,
    channel_of,
    direct_address,
    interleaved,
    load_config,
)
from emu.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load(name):
    config = load_config(name)
    assert config.name == name
    assert len(set(config.channel_ports)) == config.hbm.channels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mesh.rows=0"], "mesh.rows"),
        (["mesh.depth=4"], "mesh.depth: no such setting"),
        (["core.cells=8"], "core.cells"),
        (["hbm.channels=3"], "hbm.channels must be a power of two, not 3"),
        (["hbm.channels=16"], "at most twice mesh.cols"),
        (["scratchpad.kib=100"], "scratchpad.kib must be a power of two"),
        (["scratchpad.banks=3"], "scratchpad.banks must be"),
        (["core.accumulator_rows=100"], "core.accumulator_rows must be"),
        (["hbm.address_map=RRR"], "hbm.address_map must be"),
        (["prefetch.policy=Not-A-Name"], "prefetch.policy"),
        (["mesh"], "section.name=value"),
        (["mesh.rows=four"], "mesh.rows"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("base", settings)
    assert "\n" not in str(caught.value)


def test_toml_file(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text('base = "small"\n[mesh]\nrows = 3\ncols = 5\n[hbm]\nchannels = 1\n')
    config = load_config(str(path))
    assert (config.name, config.mesh.tiles, config.hbm.mib) == ("odd", 15, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [("mesh = [", "not valid TOML"), ("[mesh]\nrow = 3\n", "mesh.row: no such setting"),
     ('base = "huge"\n', "not a preset"), ("mesh = 3\n", "mesh"), ("base = {}\n", "not a preset"),
     ("[mesh]\nrows = 17\n", "mesh.rows: Input should be less than or equal to 16, not 17")],
)
def test_bad_toml_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_missing_chip_is_refused():
    with pytest.raises(UserError, match="not a preset"):
        load_config("nowhere")


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channel_map_is_a_bijection_and_spreads_strides(channels):
    config = load_config("base", [f"hbm.channels={channels}"])
    places = {channel_of(config, address) for address in range(4096)}
    assert len(places) == 4096
    for stride in (1, 2, 4, 8, 16, 64):
        hits = np.bincount(
            [channel_of(config, 16 * stride * i)[0] for i in range(256)], minlength=channels
        )
        assert hits.max() <= 2 * 256 // channels


@pytest.mark.parametrize("chip", ["small", "base", "wafer"])
def test_direct_addresses_name_the_word_they_say(chip):
    config = load_config(chip)
    rng = np.random.default_rng(3)
    per_stripe = config.hbm.words >> config.stripe_bits
    for _ in range(50):
        channel = int(rng.integers(config.hbm.channels))
        word = int(rng.integers(config.hbm.words))
        (address,) = interleaved(config, np.array([direct_address(config, channel, word)]))
        assert channel_of(config, int(address)) == (channel, word)
        stripe, word = int(rng.integers(1 << config.stripe_bits)), int(rng.integers(per_stripe))
        (address,) = interleaved(config, np.array([direct_address(config, channel, word, stripe)]))
        segment, offset = divmod(word, SEGMENT_WORDS)
        local = (segment << config.stripe_bits | stripe) * SEGMENT_WORDS + offset
        assert channel_of(config, int(address)) == (channel, local)


def test_interleaved_addresses_stay():
    addresses = np.arange(1000)
    assert (interleaved(load_config("base"), addresses) == addresses).all()
