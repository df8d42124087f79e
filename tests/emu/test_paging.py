# SPDX-License-Identifier: Apache-2.0
"""Constants in storage: pages and regions of programs, frames that lie beside everything else."""

import pytest

from emu.compiler import compile_network
from emu.compiler.images import Memory, to_channels
from emu.compiler.paging import MOST_REGIONS, plan_paging
from emu.config import load_config
from emu.errors import UserError
from emu.network.experts import moe_block
from emu.network.transformers import decoder
from emu.network.workloads import load_network

STORED = "storage.enabled=true"


def compiled(network, *settings, chip="small"):
    config = load_config(chip, [STORED, *settings])
    return compile_network(network, config, check=False)


def laid_out(*areas, settings=()):
    """Regions of layers that read one area each: (words of all channels, uses, parts, used)."""
    config = load_config("small", [STORED, *settings])
    memory = Memory(config)
    first = memory.allocate(512, "activations")
    for words, parts, used in areas:
        memory.begin_layer()
        memory.allocate(words, "weights", parts=parts, used=used)
    return plan_paging(config, memory, first + 512)


def test_regions_by_hand():
    """Two channels and pages of 256 words: 512 words of all channels are a page in each."""
    plan = laid_out((1024, 1, 1), (16, 1, 1), (480, 1, 1), (4 * 512, 4, 1))
    assert (plan.first, plan.last, plan.pages) == (64, 64 + 7 * 64, 7)
    assert [(r.first, r.pages, r.child, r.frequency, r.optional) for r in plan.regions] == [
        # The second layer's only page is the third's, too; that is behind the first's two.
        (0, 2, 1, 255, False), (2, 1, 2, 255, False),
        # One expert of four is used in a pass.
        (3, 1, 3, 64, True), (4, 1, 4, 64, True), (5, 1, 5, 64, True), (6, 1, 0, 64, True)]


def test_many_regions_are_joined():
    plan = laid_out(*[(512, 1, 1)] * 200, settings=["storage.pages=256"])
    assert len(plan.regions) == MOST_REGIONS
    assert sum(region.pages for region in plan.regions) == plan.pages == 200
    assert [region.child for region in plan.regions] == [*range(1, MOST_REGIONS), 0]


@pytest.mark.parametrize("workload", ["tiny.chain", "tiny.moe", "digits", "gpt2.decode_qkv"])
@pytest.mark.parametrize("chip", ["small", "base"])
def test_regions_cover_every_page_once(workload, chip):
    plan = compiled(load_network(workload), chip=chip).paging
    at = 0
    for region in plan.regions:
        assert region.first == at and region.pages > 0
        assert 0 <= region.child < len(plan.regions)
        at += region.pages
    assert at == plan.pages


def test_steps_share_regions_and_the_last_is_followed_by_the_first():
    one, four = (
        compiled(decoder("d", 7, layers=2, width=64, heads=4, cached=13, steps=steps)).paging
        for steps in (1, 4))
    one, four = one.regions, four.regions
    # The steps have tables of their own, in pages that they share.
    assert len(one) <= len(four) < len(one) + 4 and all(r.pages == 1 for r in four[len(one):])
    assert four[:len(one)] == one
    assert [region.child for region in one] == [*range(1, len(one)), 0]


def test_experts_are_regions_of_their_own():
    program = compiled(moe_block("m", 7, experts=8, width=256, inner=256), chip="base")
    experts = [region for region in program.paging.regions if region.optional]
    assert len(experts) == 16 and {region.frequency for region in experts} == {64}


def test_images_are_the_same_words_in_two_places(tmp_path):
    program = compiled(load_network("tiny.chain"))
    image = to_channels(program.config, program.words)
    program.write_images(image, tmp_path)
    first, last = 16 * 4 * program.paging.first, 16 * 4 * program.paging.last
    for channel, words in enumerate(image):
        whole = words[:, ::-1].tobytes()
        hbm = (tmp_path / f"channel_{channel}.bin").read_bytes()
        assert (tmp_path / f"storage_{channel}.bin").read_bytes() == whole[first:last]
        assert hbm[:first] + whole[first:last] + hbm[last:] == whole
        assert not any(hbm[first:last])


def test_frames_lie_over_the_constants_or_behind_everything():
    network = decoder("d", 7, layers=2, width=64, heads=4, cached=13, steps=1)
    few, many = (compiled(network, f"storage.cache_pages={count}") for count in (8, 64))
    page, plan = 256, few.paging
    assert plan.base == -(-4 * plan.first // page) and 4 * plan.last >= (plan.base + 8) * page
    assert many.paging.base * page * 2 >= len(many.words)


@pytest.mark.parametrize(("settings", "text"), [
    (("storage.pages=16", "storage.page_kib=1"), r"storage.pages=16: the constants need \d+ pages"),
    (("hbm.mib=1", "storage.cache_pages=512"), "storage.cache_pages=512: beside activations and "
     r"commands hbm.mib=1 has room for \d+ pages of 4 KiB"),
])
def test_what_does_not_fit_is_said(settings, text):
    with pytest.raises(UserError, match=text):
        compiled(decoder("d", 7, layers=2, width=64, heads=4, cached=13, steps=1), *settings)


@pytest.mark.parametrize("other", ["hbm.edge_kib=64", "hbm.sum_rows=4", "hbm.ecc=true"])
def test_storage_goes_with_no_other_path_of_reads(other):
    name = other.split("=")[0]
    with pytest.raises(UserError, match=f"storage.enabled does not go with {name}"):
        load_config("base", [STORED, other])
