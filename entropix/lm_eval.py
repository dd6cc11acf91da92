"""EleutherAI's lm-evaluation-harness on a model of ours, with any sampler.

    python -m entropix.lm_eval run --model entropix --tasks piqa --model_args sampler=min-p,min_p=0.05,seed=1

All flags are the harness's own. --model_args takes weights, dtype, sampler, sampler_config (a TOML file), seed,
max_length, max_gen_toks, and the numbers of the sampler. The harness is an extra: pip install 'entropix-jax[lm-eval]'.
"""

import sys

from entropix.console import cli


def main(args: list[str] | None = None, prog: str = "entropix lm_eval") -> None:
    """Registers the model class `entropix` and hands over. args: the harness's flags, by default the process's."""
    try:
        import lm_eval.api.model
        import lm_eval.api.registry
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ValueError(
            f"this needs lm-evaluation-harness ({error}): pip install 'entropix-jax[lm-eval]'"
        ) from None

    from entropix import backend
    from entropix.lab import harness

    backend.use_compilation_cache()
    if harness.NAME not in lm_eval.api.registry.model_registry:
        lm_eval.api.registry.register_model(harness.NAME)(harness.Harness)
    lm_eval.api.model.CachingLM = harness.Cache
    sys.argv = [prog, *(sys.argv[1:] if args is None else args)]
    cli_evaluate()


if __name__ == "__main__":
    cli.leave(cli.run(main))
