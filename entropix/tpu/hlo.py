"""What a compiled program says of itself: reads the text of XLA's optimized HLO.

For the questions that XLA answers in no other way: which collectives a program runs and what each carries, how many
bytes go through a device's memory, whether the host takes part. The text is that of one device of a partitioned
program, so that all sizes are a single device's. It is a TPU's: other backends write the conditions of loops otherwise,
of which then no number of rounds is known.

Arrays are measured as they lie: a layout like `{1,0:T(8,128)}` pads the two innermost axes to whole tiles, and `S(1)`
is not the device's main memory but the fast one of its core.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
HOST_OPCODES = ("infeed", "outfeed", "send", "recv")

# Of the element types whose names do not end in them.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
_NOT_MOVED = {  # name an array or a part of one, or are counted where they begin
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "optimization-barrier", "async-start", "partition-id", "replica-id", "iota",
}  # fmt: skip
_VIEWS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}  # custom calls that move nothing
_PARTS = {"dynamic-slice", "slice", "gather"}  # read no more of their first operand than they return


class Buffer(NamedTuple):
    """One array as it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int  # with padding
    payload: int  # bytes without it
    in_main_memory: bool

    @property
    def size(self) -> int:
        """Elements, without padding."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """One line of a computation. A result that is a tuple is given by its arrays."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]  # their names
    literal: str  # what stands in the parentheses: of a parameter its number, of a constant its value
    attributes: str
    is_root: bool

    @property
    def origin(self) -> str:
        """Where in the Python code it comes from: named scopes, functions and the operation, joined by slashes."""
        return _attribute(self.attributes, r'op_name="([^"]*)"')


class Program(NamedTuple):
    """Computations by name, each in the order in which it runs; the one named `entry` is the program's own."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


class Collective(NamedTuple):
    """One kind of exchange between devices, and how often a step does it."""

    kind: str
    arrays: str  # element types and shapes, of one device
    nbytes: int  # of one device, each time
    largest: int  # elements of the largest array
    origin: str
    times: int


# ----- reading ----------------------------------------------------------------------------------------------


def parse(text: str) -> Program:
    """The program whose `compiled.as_text()` this is."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if heading := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(heading[2], {})
            entry = heading[2] if heading[1] else entry
        elif current is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)):
            current[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no line that begins with ENTRY")
    return Program(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    """From what stands behind the equals sign: `type opcode(operands), attributes`."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    results, call = rest[:end], rest[end:].lstrip()
    opens = call.index("(")
    closes = _closing(call, opens)
    return Instruction(
        name=name,
        opcode=call[:opens],
        results=_buffers(results),
        operands=tuple(re.findall(r"%([\w.\-]+)", call[opens:closes])),
        literal=call[opens + 1 : closes],
        attributes=call[closes + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced parentheses in HLO: {text[:100]!r}")


def _buffers(types: str) -> tuple[Buffer, ...]:
    """The arrays in a type like `(f32[8,128]{1,0:T(8,128)S(1)}, s32[])`, without what is no array."""
    types = re.sub(r"/\*.*?\*/", "", types)
    return tuple(
        _buffer(found[1], found[2], found[3] or "")
        for found in re.finditer(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", types)
    )


def _buffer(dtype: str, dims: str, layout: str) -> Buffer:
    shape = tuple(int(n) for n in dims.split(",") if n)
    space = re.search(r"S\((\d+)\)", layout)
    order = [int(n) for n in layout.strip("{}").partition(":")[0].split(",") if n]
    padded = [shape[axis] for axis in order] or list(shape[::-1])  # innermost first
    if tile := re.search(r":T\(([\d,]+)\)", layout):
        for place, size in enumerate(reversed([int(n) for n in tile[1].split(",")])):
            if place == len(padded):
                padded.append(1)
            padded[place] = -(-padded[place] // size) * size
    bits = _BITS[dtype] if dtype in _BITS else int(_attribute(dtype, r"(\d+)") or 0)
    return Buffer(
        dtype,
        shape,
        nbytes=math.prod(padded) * bits // 8,
        payload=math.prod(shape) * bits // 8,
        in_main_memory=space is None or space[1] == "0",
    )


def _attribute(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


# ----- what runs --------------------------------------------------------------------------------------------


def step(program: Program) -> str:
    """The computation that is one step: the body of the program's own loop, or, without one, the program itself.

    That loop is the one whose number of rounds only the run decides.
    """
    for instruction in program.computations[program.entry].values():
        if instruction.opcode == "while" and _rounds(program, instruction) is None:
            return _attribute(instruction.attributes, r"body=%([\w.\-]+)")
    return program.entry


def executed(
    program: Program, computation: str, rounds: int = 1, times: int = 1
) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, how often it runs) of all that runs with a computation, loops inside it included.

    rounds: of the loops inside whose number only the run decides. A fusion is one instruction. Of a conditional every
    branch is counted.
    """
    for instruction in program.computations[computation].values():
        yield computation, instruction, times
        inside = (_rounds(program, instruction) or rounds) if instruction.opcode == "while" else 1
        for name in _called(instruction):
            yield from executed(program, name, rounds, times * inside)


def _called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, other than those of fusions and of single numbers."""
    names = {
        "while": r"body=%([\w.\-]+)",
        "call": r"to_apply=%([\w.\-]+)",
        "async-start": r"calls=%([\w.\-]+)",
        "conditional": r"(?:true_computation|false_computation)=%([\w.\-]+)",
    }.get(instruction.opcode)
    if names is None:
        return []
    branches = _attribute(instruction.attributes, r"branch_computations=\{([^}]*)\}")
    return re.findall(names, instruction.attributes) + re.findall(r"%([\w.\-]+)", branches)


def _rounds(program: Program, loop: Instruction) -> int | None:
    """How often a loop runs that counts from 0 to a constant; None for others."""
    condition = program.computations[_attribute(loop.attributes, r"condition=%([\w.\-]+)")]
    for instruction in condition.values():
        if (
            instruction.is_root
            and instruction.opcode == "compare"
            and "direction=LT" in instruction.attributes
        ):
            bound = condition[instruction.operands[1]]
            return int(bound.literal) if bound.opcode == "constant" else None
    return None


# ----- what it does -----------------------------------------------------------------------------------------


def collectives(program: Program, computation: str, rounds: int = 1) -> list[Collective]:
    """All exchanges between devices that run with a computation, alike ones together, those with most bytes first."""
    found: Counter[Collective] = Counter()
    for _, outer, times in executed(program, computation, rounds):
        inside = program.computations[_fused(outer)].values() if _fused(outer) else ()
        for instruction in (outer, *inside):
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                arrays = _outcome(instruction)
                shown = " ".join(
                    f"{n} × {name}" if n > 1 else name for name, n in Counter(map(str, arrays)).items()
                )
                largest = max((array.size for array in arrays), default=0)
                nbytes = sum(array.payload for array in arrays)
                found[Collective(kind, shown, nbytes, largest, instruction.origin or outer.origin, 0)] += (
                    times
                )
    listed = [each._replace(times=times) for each, times in found.items()]
    return sorted(listed, key=lambda each: (-each.nbytes * each.times, each))


def host_work(program: Program) -> list[str]:
    """Names of all instructions by which the host would take part, or data leave the device for it."""
    return [
        instruction.name
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode.removesuffix("-done") in HOST_OPCODES
        or (instruction.opcode == "custom-call" and re.search("(?i)host|callback", instruction.attributes))
    ]


def traffic(program: Program, computation: str, rounds: int = 1) -> int:
    """Bytes that a computation reads from and writes to the device's main memory, each time it runs.

    Every instruction reads its operands and writes its results, of those that are in main memory, with padding. What
    an instruction takes out of an array or puts into one counts, not the array. rounds: as of `executed`.
    """
    return sum(times * nbytes for _, nbytes, times in movements(program, computation, rounds))


def movements(program: Program, computation: str, rounds: int = 1) -> Iterator[tuple[Instruction, int, int]]:
    """(instruction, bytes each time, how often it runs) of what `traffic` adds up."""
    for name, instruction, times in executed(program, computation, rounds):
        if nbytes := _moved(program, program.computations[name], instruction):
            yield instruction, nbytes, times


def _moved(program: Program, around: dict[str, Instruction], instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _NOT_MOVED or opcode.endswith("-done") or _target(instruction) in _VIEWS:
        return 0
    if opcode in (
        "copy-start",
        "slice-start",
    ):  # (to, from, ...) or (from, to, ...), of which one may be larger
        two = instruction.results[:2]
        return min(array.nbytes for array in two) * sum(array.in_main_memory for array in two)
    operands = [around[name] for name in instruction.operands]
    if fused := _fused(instruction):
        body = program.computations[fused]
        read = sum(
            int(min(_read(program, body, _parameter(body, place)), nbytes))
            for place, nbytes in enumerate(map(_in_main_memory, operands))
            if nbytes
        )
        return read + sum(_written(body, instruction))
    if opcode == "dynamic-update-slice":
        return _of_parts(operands[1].results, (operands[1], instruction))
    if opcode in _PARTS:
        return _of_parts(instruction.results, (operands[0], instruction))
    written = sum(array.nbytes for array in _outcome(instruction) if array.in_main_memory)
    return written + sum(map(_in_main_memory, operands))


def _of_parts(parts: Iterable[Buffer], ends: Iterable[Instruction]) -> int:
    """Bytes of a part that goes from one array to another, for each of the two that is in main memory."""
    nbytes = sum(part.nbytes for part in parts)
    return nbytes * sum(_in_main_memory(end) > 0 for end in ends)


def _outcome(instruction: Instruction) -> list[Buffer]:
    """The results without what the start of an exchange returns besides: its operands again, and numbers."""
    if instruction.opcode not in ("all-gather-start", "collective-permute-start"):
        return list(instruction.results)
    arrays = [array for array in instruction.results if array.shape]
    return arrays[len(arrays) // 2 :]


def _read(program: Program, body: dict[str, Instruction], name: str) -> float:
    """Bytes that a fusion reads of its operand of this name: if only parts are taken out of it, those, else all."""
    parts = 0.0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode in _PARTS and user.operands[0] == name:
            parts += sum(array.nbytes for array in user.results)
        elif user.opcode == "bitcast" and not user.is_root:
            parts += _read(program, body, user.name)
        elif inner := _fused(user):
            places = [place for place, operand in enumerate(user.operands) if operand == name]
            inside = program.computations[inner]
            parts += sum(_read(program, inside, _parameter(inside, place)) for place in places)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return math.inf
    return parts


def _written(body: dict[str, Instruction], fusion: Instruction) -> Iterator[int]:
    """Bytes that a fusion writes, result by result; into an array that it changes in place, what it puts there."""
    root = next(instruction for instruction in body.values() if instruction.is_root)
    roots = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for array, source in zip(fusion.results, roots, strict=False):
        while source.opcode == "bitcast":
            source = body[source.operands[0]]
        if not array.in_main_memory:
            continue
        if source.opcode == "dynamic-update-slice":
            yield sum(part.nbytes for part in body[source.operands[1]].results)
        else:
            yield array.nbytes


def _fused(instruction: Instruction) -> str:
    """The computation of a fusion, or nothing."""
    return _attribute(instruction.attributes, r"calls=%([\w.\-]+)") if instruction.opcode == "fusion" else ""


def _parameter(body: dict[str, Instruction], place: int) -> str:
    """The name of a computation's parameter."""
    return next(
        each.name for each in body.values() if each.opcode == "parameter" and each.literal == str(place)
    )


def _in_main_memory(instruction: Instruction) -> int:
    """Bytes of its results there."""
    return sum(array.nbytes for array in instruction.results if array.in_main_memory)


def _target(instruction: Instruction) -> str:
    return _attribute(instruction.attributes, r'custom_call_target="([^"]*)"')
