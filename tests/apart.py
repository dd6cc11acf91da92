"""A process of its own that computes the same on every processor.

jaxlib's CPU backend leaves products of several rows to a library that picks its kernels by the processor, and begins an
inverse square root with an instruction whose result each maker of processors may choose, so that the last bits of
logits differ between machines; a low temperature magnifies them. Here products are added up in one order, and
1/sqrt(x) is what its name says.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import jaxlib

from entropix import backend

# Only where the flag is known to be understood: XLA ends the process at one that it does not know.
FLAGS = (
    f" {backend.SUMS_FLAG}={backend.SUMS_VALUE},-individual_dot --xla_cpu_enable_platform_dependent_math=false"
) * (jaxlib.__version__ in backend.WRONG_SUMS)


def compute(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module of these tests returns there. Function, arguments and result can be pickled."""
    flags = {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + FLAGS
    }  # of a flag that comes twice the last one counts
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, flags), ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_called, function, *args).result()


def _called(function: Callable[..., Any], *args: Any) -> Any:
    import conftest

    conftest._keep_compiled(False)
    return function(*args)
