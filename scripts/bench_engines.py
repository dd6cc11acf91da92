"""Another library in a process of its own: does what scripts/bench_peers.py asks, a line of JSON at a time.

    python scripts/bench_engines.py {transformers,llama.cpp}

It needs nothing of entropix, and of the libraries only the one it is started for. So each has its threads to itself,
and all can live in an environment that has no JAX.
"""

import abc
import ctypes
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

TRIAL_STEPS = 8  # of every variant, to find the quickest
TRIALS = 3  # the first of which warms up
PAUSE = 0.05  # seconds before each: the last one's idle threads spin for a while before they sleep


class Rows(Protocol):
    """A batch of texts with their cache, all of one length."""

    def read(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Forgets all it holds and reads these: the most likely next token of each."""

    def step(self, tokens: Sequence[int]) -> list[int]:
        """Appends a token to each: the most likely next ones."""

    def cut(self, length: int) -> None:
        """Goes back to where the texts had `length` tokens."""


class Batch:
    """Rows in the middle of their texts. Like a session of entropix they have read all but the last token of each."""

    def __init__(self, rows: Rows, prompts: Sequence[Sequence[int]]) -> None:
        self.rows = rows
        self._last, self._length = [prompt[-1] for prompt in prompts], len(prompts[0]) - 1
        rows.read([prompt[:-1] for prompt in prompts])

    def rewind(self) -> None:
        """To the end of the prompts."""
        self.rows.cut(self._length)

    def advance(self, n_steps: int) -> list[list[int]]:
        """The next tokens of every row, greedily."""
        steps = [self.rows.step(self._last)]
        while len(steps) < n_steps:
            steps.append(self.rows.step(steps[-1]))
        return [list(row) for row in zip(*steps, strict=True)]


class Engine(abc.ABC):
    """What can be asked, whatever the library. Batches are kept by the name that they were prepared under."""

    packages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._batches: dict[str, Batch] = {}

    @abc.abstractmethod
    def variants(self, n_rows: int, room: int, **options: Any) -> Iterator[tuple[str, Rows]]:
        """The ways in which the library can hold so many rows with room for so many tokens each."""

    def about(self) -> dict[str, str]:
        """The versions of what is installed here."""
        found = {}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def prepare(
        self,
        key: str,
        prompts: list[list[int]],
        room: int,
        n_begin: int,
        reading: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Keeps the variant that is quickest at a few steps, or, if `reading`, at the prompts: its name, the seconds
        that each took, and the first tokens that follow every prompt."""
        room += TRIAL_STEPS
        batches = {name: Batch(rows, prompts) for name, rows in self.variants(len(prompts), room, **options)}
        best = dict.fromkeys(batches, float("inf"))
        for trial in range(TRIALS):
            for name, batch in batches.items():
                batch.rewind()
                time.sleep(PAUSE)
                start = time.perf_counter()
                if reading:
                    batch.rows.read(prompts)
                else:
                    batch.advance(TRIAL_STEPS)
                if trial > 0:
                    best[name] = min(best[name], time.perf_counter() - start)
        name = min(best, key=lambda name: best[name])
        self._batches[key] = batch = batches[name]
        batch.rewind()
        return {"variant": name, "seconds": best, "begins": batch.advance(n_begin)}

    def rewind(self, key: str) -> None:
        """See `Batch`."""
        self._batches[key].rewind()

    def advance(self, key: str, n_steps: int) -> list[list[int]]:
        """See `Batch`."""
        return self._batches[key].advance(n_steps)

    def prefill(self, key: str, prompt: list[int]) -> list[int]:
        """Reads one prompt and stops."""
        return self._batches[key].rows.read([prompt])

    def answer(self, key: str, prompt: list[int], n_tokens: int) -> list[int]:
        """The greedy continuation of one prompt, which is read first."""
        tokens = (rows := self._batches[key].rows).read([prompt])
        while len(tokens) < n_tokens:
            tokens += rows.step(tokens[-1:])
        return tokens


# ----- transformers -----------------------------------------------------------------------------------------


class Transformers(Engine):
    """Eager attention, float32; and the entropy decoding of optillm, which runs on such a model."""

    packages = ("torch", "transformers", "optillm")

    def load(self, folder: str) -> int:
        """The bytes of the weights."""
        self._torch, self._library = (importlib.import_module(name) for name in ("torch", "transformers"))
        self._library.utils.logging.disable_progress_bar()
        self._torch.set_num_threads(os.cpu_count())
        self._model = self._library.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self._torch.float32, attn_implementation="eager"
        ).eval()
        return sum(weight.numel() * weight.element_size() for weight in self._model.parameters())

    def variants(self, n_rows: int, room: int, **options: Any) -> Iterator[tuple[str, Rows]]:
        """A cache that grows with every token, and one that has the room from the start.

        options: attentions, whether they are an output.
        """
        del n_rows  # it shows in what they read
        for name, slots in (("dynamic cache", None), ("static cache", room)):
            yield name, TransformersRows(self._library, self._torch, self._model, slots, **options)

    def load_optillm(self) -> None:
        """Its decoding alone, from the file: the package as a whole imports a server and all that this needs."""
        spec = importlib.util.find_spec("optillm")
        assert spec is not None and spec.submodule_search_locations is not None
        file = Path(spec.submodule_search_locations[0]) / "entropy_decoding.py"
        alone = importlib.util.spec_from_file_location("optillm_entropy_decoding", file)
        assert alone is not None and alone.loader is not None
        logging.basicConfig(level=logging.WARNING)  # it would set another, and say every start and end
        self._entropy = importlib.util.module_from_spec(alone)
        alone.loader.exec_module(self._entropy)

    def optillm(self, prompt: list[int], n_tokens: int) -> int:
        """An answer by optillm's `entropy_decode`, with its defaults: how many tokens it has."""
        ids = TokenIds(self._torch, prompt)
        self._entropy.entropy_decode(self._model, ids, [], max_new_tokens=n_tokens)
        return ids.decoded


class TransformersRows:
    """See `Rows`. slots: of a static cache; None for a dynamic one."""

    def __init__(self, library: Any, torch: Any, model: Any, slots: int | None, attentions: bool) -> None:
        self._library, self._torch, self._model = library, torch, model
        self._slots, self._attentions = slots, attentions

    def read(self, texts: Sequence[Sequence[int]]) -> list[int]:
        config = self._model.config
        if self._slots is None:
            self._cache = self._library.DynamicCache(config=config)
        else:
            self._cache = self._library.StaticCache(config=config, max_cache_len=self._slots)
        return self._forward(texts)

    def step(self, tokens: Sequence[int]) -> list[int]:
        return self._forward([[token] for token in tokens])

    def cut(self, length: int) -> None:
        if (too_many := int(self._cache.get_seq_length()) - length) > 0:
            self._cache.crop(-too_many)

    def _forward(self, tokens_BT: Sequence[Sequence[int]]) -> list[int]:
        with self._torch.inference_mode():
            out = self._model(
                input_ids=self._torch.tensor(tokens_BT),
                past_key_values=self._cache,
                use_cache=True,
                output_attentions=self._attentions,
                logits_to_keep=1,
            )
            if self._attentions:
                assert out.attentions[0].ndim == 4
            tokens: list[int] = out.logits[:, -1].argmax(dim=-1).tolist()
        return tokens


class TokenIds:
    """What optillm takes for a tokenizer: a text that is these ids, and no end of a text."""

    chat_template, pad_token_id, eos_token_id = None, 0, -1

    def __init__(self, torch: Any, prompt: list[int]) -> None:
        self._prompt_BT = torch.tensor([prompt])
        self.decoded = 0

    def encode(self, text: str, return_tensors: str) -> Any:
        """The ids, whatever the text."""
        return self._prompt_BT

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        """No text; the last time it is called for the whole answer."""
        self.decoded = len(tokens)
        return ""


# ----- llama.cpp --------------------------------------------------------------------------------------------


class Llama(Engine):
    """A GGUF file through the C interface: its own defaults, but as many threads as there are cores."""

    packages = ("llama-cpp-python",)

    def about(self) -> dict[str, str]:
        """And the instruction sets that it was built with."""
        found = super().about()
        if found:
            cpp = importlib.import_module("llama_cpp")
            logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
            found["llama.cpp was built with"] = cpp.llama_print_system_info().decode().strip()
        return found

    def package_file(self, package: str, file: str) -> str | None:
        """The path of a file of a package that is installed here."""
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / file).is_file():
                return str(path)
        return None

    def load(self, file: str) -> int:
        """The bytes of the file. It is mapped, and needs no name any more."""
        self._cpp = importlib.import_module("llama_cpp")
        self._cpp.llama_backend_init()
        size = Path(file).stat().st_size
        params = self._cpp.llama_model_default_params()
        self._model = self._cpp.llama_model_load_from_file(file.encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {file}")
        return size

    def variants(self, n_rows: int, room: int, **options: Any) -> Iterator[tuple[str, Rows]]:
        """With its fused attention and without. Every row has a cache of its own, as is the default: in a common one
        each row would attend to the others' slots as well."""
        if options:
            raise ValueError(f"llama.cpp has no options, got {options}")
        for flash in (True, False):
            name = f"flash attention {'on' if flash else 'off'}"
            yield name, LlamaRows(self._cpp, self._model, n_rows, room, flash)


class LlamaRows:
    """See `Rows`: a context with a sequence for every row, of which one call computes a step."""

    def __init__(self, cpp: Any, model: Any, n_rows: int, room: int, flash: bool) -> None:
        self._cpp, self._n_rows = cpp, n_rows
        self._vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_rows * -(-room // 256) * 256, n_rows  # it would round up to that
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = os.cpu_count()
        params.flash_attn_type = int(flash)
        self._context = cpp.llama_init_from_model(model, params)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context of {n_rows} rows of {room} tokens")
        self._widest = cpp.llama_n_batch(self._context)
        self._batch = cpp.llama_batch_init(self._widest, 0, 1)
        self._memory = cpp.llama_get_memory(self._context)
        self._length = 0

    def __del__(self) -> None:
        if getattr(self, "_batch", None) is not None:
            self._cpp.llama_batch_free(self._batch)
            self._cpp.llama_free(self._context)

    def read(self, texts: Sequence[Sequence[int]]) -> list[int]:
        self._cpp.llama_memory_clear(self._memory, True)
        tokens: list[int] = []
        self._length = len(texts[0])
        for row, text in enumerate(texts):
            for first in range(0, len(text), self._widest):
                piece = list(enumerate(text[first : first + self._widest], first))
                self._decode([(token, row, place, place == len(text) - 1) for place, token in piece])
            tokens += self._likeliest(1)
        return tokens

    def step(self, tokens: Sequence[int]) -> list[int]:
        self._decode([(token, row, self._length, True) for row, token in enumerate(tokens)])
        self._length += 1
        return self._likeliest(len(tokens))

    def cut(self, length: int) -> None:
        for row in range(self._n_rows):
            if not self._cpp.llama_memory_seq_rm(self._memory, row, length, -1):
                raise ValueError("llama.cpp cannot take tokens back")
        self._length = length

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """entries: (token, row, place in the row's text, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, row, place, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if (status := self._cpp.llama_decode(self._context, batch)) != 0:
            raise ValueError(f"llama_decode returned {status}")

    def _likeliest(self, n: int) -> list[int]:
        """Of the n logits that were computed last, which lie one after another."""
        logits = self._cpp.llama_get_logits(self._context)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        tokens: list[int] = np.ctypeslib.as_array(address, (n, self._vocabulary)).argmax(axis=-1).tolist()
        return tokens


# ----- the process ------------------------------------------------------------------------------------------


def main() -> None:
    """Answers until nobody asks. What libraries print goes to stderr."""
    engine = {"transformers": Transformers, "llama.cpp": Llama}[sys.argv[1]]()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted, and ends this
    warnings.simplefilter("ignore", FutureWarning)  # transformers renames an argument, and knows the old name
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        what, options = json.loads(line)
        try:
            answer = {"done": getattr(engine, what)(**options)}
        except Exception as error:  # whatever a library raises, the one who asks says it
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
