"""What the programs of `ahead` take of a chip: memory, bytes and FLOPs of a step, exchanges with other chips.

The roofline (Williams 2009, doi:10.1145/1498765.1498785) says that a program takes at least as long as its FLOPs need
at the chip's peak, and as long as its bytes need at the bandwidth of its memory. Exchanges between chips are counted
and listed, not timed: most are a few bytes, whose time is latency, and nobody publishes that.
"""

import dataclasses

from entropix.decoding.prefix_cache import PREFILL_WIDTHS
from entropix.tpu import ahead, hlo
from entropix.tpu.ahead import Compiled, Target
from entropix.tpu.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Usage:
    """One program on one device. Bytes; `moved_bytes` and `flops` are those of a decode step, else of a whole run."""

    compile_seconds: float
    held_bytes: int  # of what is there when it starts: weights, cache and recent tokens
    argument_bytes: int
    output_bytes: int
    aliased_bytes: int  # of outputs that take the place of arguments
    temporary_bytes: int
    code_bytes: int
    flops: float
    moved_bytes: int
    collectives: list[Collective]
    host_work: list[str]

    @property
    def peak_bytes(self) -> int:
        """What is there at once while it runs."""
        new = self.output_bytes - self.aliased_bytes + self.temporary_bytes
        return max(self.held_bytes, self.argument_bytes) + new


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found for one target, of one device where nothing else is said."""

    model: str
    topology: str
    mesh: str
    n_devices: int
    batch: int
    context: int
    sampler: str
    hbm_bytes: float
    weights_bytes: int
    cache_bytes: int
    least_bytes: int  # what a step cannot do without: the weights that it uses and the whole cache, read once
    programs: dict[str, Usage]
    bytes_per_second: float
    flops_per_second: float

    @property
    def peak_bytes(self) -> int:
        """Of the program that takes most, with the code of all of them."""
        code = sum(usage.code_bytes for usage in self.programs.values())
        return code + max(usage.peak_bytes for usage in self.programs.values())

    @property
    def fits(self) -> bool:
        """Into the memory that the chip has by its data sheet; the compiler has agreed, or there would be no report."""
        return self.peak_bytes <= self.hbm_bytes

    @property
    def decode_tokens_per_second(self) -> float:
        """Of all rows together, at the least."""
        return self.batch / self.seconds("decode")

    @property
    def prefill_tokens_per_second(self) -> float:
        """Of all rows together, for the widest pieces of a prompt and a full cache."""
        return self.batch * min(PREFILL_WIDTHS[-1], self.context) / self.seconds("prefill")

    def seconds(self, program: str) -> float:
        """The least that a run, or a decode step, takes."""
        usage = self.programs[program]
        return max(usage.flops / self.flops_per_second, usage.moved_bytes / self.bytes_per_second)


def measure(target: Target, model: str, topology: str) -> Report:
    """Compiles and measures everything. `model` and `topology` are the words that `target` was made from."""
    loaded, cache = ahead.abstract_weights(target), ahead.abstract_cache(target)
    unused = 0 if loaded.unembed_VD is None else ahead.device_bytes(loaded.embed_VD)  # but for a row of it
    weights_bytes, cache_bytes = ahead.device_bytes(loaded), ahead.device_bytes(cache)
    shape = target.mesh.shape
    return Report(
        model=model,
        topology=topology,
        mesh=",".join(f"{axis}={size}" for axis, size in shape.items()),
        n_devices=target.mesh.size,
        batch=target.batch,
        context=target.capacity,
        sampler=target.sampler.label,
        hbm_bytes=target.chip.hbm_bytes,
        weights_bytes=weights_bytes,
        cache_bytes=cache_bytes,
        least_bytes=weights_bytes - unused + cache_bytes,
        programs={compiled.name: usage(compiled) for compiled in ahead.programs(target)},
        bytes_per_second=target.chip.hbm_bytes_per_second,
        flops_per_second=target.chip.flops_per_second,
    )


def usage(compiled: Compiled) -> Usage:
    """What one program takes.

    XLA counts the FLOPs, the body of a loop once: of the decode loop that is a step; what else is hidden in loops is
    added. Bytes are those of `hlo.traffic`: XLA's own count does not tell the memory of the chip from the fast one of
    its core, through which all weights go.
    """
    memory, cost = compiled.executable.memory_analysis(), compiled.executable.cost_analysis()
    program = hlo.parse(compiled.executable.as_text())
    step = hlo.step(program)
    return Usage(
        compile_seconds=compiled.seconds,
        held_bytes=compiled.held_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0) + compiled.hidden_flops,
        moved_bytes=hlo.traffic(program, step, compiled.rounds),
        collectives=hlo.collectives(program, step, compiled.rounds),
        host_work=hlo.host_work(program),
    )
