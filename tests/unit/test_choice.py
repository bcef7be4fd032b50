"""The choice of an algorithm (csrc/collectives/choice.h, cost.h) and the profiles that it goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringdp import _core
from ringdp.constants import Dtype
from ringdp.errors import UsageError

PROFILES = _core.built_in_profiles()
MIB = 1 << 20


def choose(
    ranks: int, hosts: int, bytes_: int, profile: str = "ethernet-10", algorithm: str = "auto", dtype: int = 8
) -> str:
    return _core.choose(
        ranks, hosts, -(-ranks // hosts), False, bytes_, dtype, _core.profile(profile), algorithm
    )


def costs(ranks: int, hosts: int, bytes_: int, profile: Any, dtype: int = 8) -> dict[str, float]:
    return dict(_core.costs(ranks, hosts, -(-ranks // hosts), False, bytes_, dtype, profile))


# --- costs ----------------------------------------------------------------------------------------------------------


def plain() -> Any:
    """A profile of round numbers: 1 s a message, 1 byte a second, nothing else costs."""
    profile = _core.profile("ethernet-1")
    profile.overhead = 0.0
    for link in (profile.host, profile.net):
        link.latency, link.bandwidth = 1.0, 1.0
    profile.reduce = 1e30
    return profile


def test_the_formulas_on_four_ranks_one_a_host() -> None:
    found = costs(4, 4, 800, plain())
    assert found["ring"] == pytest.approx(2 * 3 + 2 * 3 / 4 * 800)
    assert found["recursive_doubling"] == pytest.approx(2 * (1 + 800))
    assert found["halving_doubling"] == pytest.approx(2 * ((1 + 400) + (1 + 200)))
    # Up and down three levels with a segment of half the tensor (it is too short to be cut), then the tensor.
    assert found["double_tree"] == pytest.approx(2 * (3 * (1 + 400) + 800))


def test_pairs_cost_the_whole_tensor_twice_more() -> None:
    four, six = costs(4, 4, 800, plain()), costs(6, 6, 800, plain())
    for name in ("recursive_doubling", "halving_doubling"):
        assert six[name] == pytest.approx(four[name] + 2 * (1 + 800))


def test_additions_count_and_short_floats_cost_what_as_many_float32_do() -> None:
    profile = plain()
    profile.reduce = 10.0
    assert costs(2, 2, 800, profile)["recursive_doubling"] == pytest.approx(1 + 800 + 80)
    for dtype in (Dtype.float16, Dtype.bfloat16):
        assert costs(2, 2, 800, profile, dtype)["recursive_doubling"] == pytest.approx(1 + 800 + 160)
    for dtype in (Dtype.float8_e4m3fn, Dtype.float8_e5m2):
        assert costs(2, 2, 800, profile, dtype)["recursive_doubling"] == pytest.approx(1 + 800 + 320)
    assert costs(2, 2, 800, profile)["ring"] == pytest.approx(2 + 800 + 40)


def test_ranks_of_a_host_share_its_link_but_not_in_the_ring() -> None:
    one, four = (
        costs(2, 2, 8 * MIB, _core.profile("ethernet-1")),
        costs(8, 2, 8 * MIB, _core.profile("ethernet-1")),
    )
    assert four["ring"] < 2 * one["ring"]
    assert four["recursive_doubling"] > 4 * one["recursive_doubling"]


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_tiny_tensors_go_by_recursive_doubling_and_large_chunks_by_the_ring(profile: str) -> None:
    for ranks in (4, 8, 16, 64):
        assert choose(ranks, ranks, 8, profile) == "recursive_doubling"
        assert choose(ranks, ranks, ranks * 16 * MIB, profile) == "ring"


def test_a_ring_of_thousands_is_too_slow_for_a_bucket() -> None:
    found = costs(8192, 8192, 64 * MIB, _core.profile("infiniband-200"))
    assert found["ring"] > 2 * min(found.values())
    assert choose(8192, 8192, 64 * MIB, "infiniband-200") == "halving_doubling"
    assert choose(8191, 8191, 64 * MIB, "infiniband-200") == "double_tree"


def test_the_choice_is_the_cheapest_but_the_ring_where_it_costs_within_ten_percent_of_it() -> None:
    seen = set()
    for profile in PROFILES:
        for ranks in (2, 3, 4, 7, 8, 48, 64, 1000):
            for hosts in {1, max(1, ranks // 8), ranks}:
                for size in range(0, 31, 2):
                    found = costs(ranks, hosts, 1 << size, _core.profile(profile))
                    chosen, least = choose(ranks, hosts, 1 << size, profile), min(found.values())
                    seen.add(chosen)
                    if found["ring"] <= 1.1 * least:
                        assert chosen == "ring"
                    else:
                        assert found[chosen] == least
    assert seen == {"ring", "recursive_doubling", "halving_doubling", "double_tree"}


def test_one_rank_exchanges_nothing() -> None:
    assert choose(1, 1, 1) == choose(1, 1, 1 << 30) == "ring"


def test_forced() -> None:
    for name, limitation in _core.algorithms():
        assert limitation
        somewhere_else = name in ("shared_memory", "two_level")
        assert choose(4, 4, 100, algorithm=name) == ("ring" if somewhere_else else name)
    with pytest.raises(
        UsageError, match="RINGDP_ALGORITHM=tree is not one of auto, ring, shared_memory, two_level"
    ):
        choose(4, 4, 100, algorithm="tree")


# --- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_same_again_from_its_file(name: str, tmp_path: Path) -> None:
    profile, path = _core.profile(name), tmp_path / "measured"
    path.write_text("# a comment\n\n" + profile.text().replace("\n", "  # why\n", 1))
    again = _core.profile(str(path))
    assert (again.text(), again.digest, again.name) == (profile.text(), profile.digest, name)
    again.net.latency *= 1.01
    assert again.digest != profile.digest


def test_digests_differ() -> None:
    assert len({_core.profile(name).digest for name in PROFILES}) == len(PROFILES)


BROKEN = {
    "no such key 'speed'": ("speed = 3", r"line 2: there is no key 'speed'"),
    "no number": ("net_gbytes = fast", r"line 2: net_gbytes = 'fast' is no number above 0"),
    "negative": ("net_gbytes = -1", r"line 2: net_gbytes = '-1' is no number above 0"),
    "not a number": ("net_gbytes = nan", r"line 2: net_gbytes = 'nan' is no number above 0"),
    "no line": ("fast", r"line 2: 'fast' is not 'key = value'"),
    "missing": ("", r"the key 'overhead_us' is missing"),
}


@pytest.mark.parametrize(("line", "match"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_profile_is_refused(line: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "profile"
    path.write_text(f"name = broken\n{line}\n")
    with pytest.raises(UsageError, match=match) as caught:
        _core.profile(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(
        UsageError, match="nowhere is neither a file that can be read nor one of ethernet-1, "
    ):
        _core.profile("nowhere")
