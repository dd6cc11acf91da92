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


def test_many_rows_waste_fewer_than_128_slots_of_a_short_text_each() -> None:
    found = [capacity_for(slots, n_rows=8) for slots in range(1, 8193)]
    assert sorted({*found[:1024]}) == list(range(256, 1025, 128))
    assert all(slots <= capacity for slots, capacity in enumerate(found, start=1))
    assert max(c - n for n, c in enumerate(found[:1024], start=1) if n > 256) < 128
    assert found[1024:] == [capacity_for(slots) for slots in range(1025, 8193)]
    assert [capacity_for(slots, n_rows=7) for slots in range(1, 1025)] == [
        capacity_for(slots) for slots in range(1, 1025)
    ]
