"""The sizes of a cache: few, and not much larger than what they hold."""

from entropix.decoding.prefix_cache import capacity_for


def test_a_long_text_wastes_at_most_a_fifth_of_its_slots() -> None:
    sizes = [256, 512, 1024, 1536, *range(2048, 4096, 512), *range(4096, 8193, 1024)]
    found = [capacity_for(slots) for slots in range(1, 8193)]
    assert sorted({*found}) == sizes and found == sorted(found)
    assert all(slots <= capacity for slots, capacity in enumerate(found, start=1))
    assert max((c - n) / c for n, c in enumerate(found, start=1) if n > 1024) < 1 / 3
    assert max((c - n) / c for n, c in enumerate(found, start=1) if n > 2048) < 1 / 5
    assert [capacity_for(size) for size in sizes] == sizes
