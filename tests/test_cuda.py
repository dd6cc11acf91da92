"""Programs for GPUs, as far as they come without one: lowered for CUDA, which XLA would then compile."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from entropix import generation
from entropix.checkpoint.loading import Model
from entropix.decoding import loop


def custom_calls(text: str) -> list[str]:
    """What a lowered program calls that is not XLA's."""
    return re.findall(r"custom_call @(\w+)", text)


@pytest.mark.slow
def test_every_program_of_a_generation_lowers_for_cuda_and_calls_nothing_but_xla(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of one platform, or a callback to the host, would be a custom call."""
    lowered: dict[str, str] = {}

    def recording(name: str) -> Any:
        program = getattr(loop, name)

        def run(*args: Any, **options: Any) -> Any:
            if name not in lowered:
                lowering = program.trace(*args, **options).lower(lowering_platforms=("cuda",))
                lowered[name] = lowering.as_text()
            return program(*args, **options)

        return run

    names = ("prefill", "decode_chunk", "commit")
    for name in names:
        monkeypatch.setattr(loop, name, recording(name))
    [result] = generation.generate(toy_model, [[1, 2, 3]], seed=1, max_new_tokens=40)
    assert len(result.token_ids) == 40
    assert set(lowered) == set(names)
    assert {name: custom_calls(text) for name, text in lowered.items()} == {name: [] for name in names}


def test_what_is_not_xla_would_be_seen() -> None:
    """The test above would pass on anything if this did not work."""
    lowering = jax.jit(jnp.linalg.qr).trace(jnp.eye(3)).lower(lowering_platforms=("cuda",))
    assert len(custom_calls(lowering.as_text())) > 0
