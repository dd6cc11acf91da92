"""Configurations: what a model is, how a token is chosen, when to stop.

    fields       what a field is: documentation, unit, range; how values are checked
    model        `ModelConfig`: shapes, and the switches in which families differ
    generation   `GenerateConfig`: how far an answer goes; branching, backtracking

The numbers of a sampling rule are in the rule's own file (`samplers/`). Each field carries its help text, unit and
inclusive range in its metadata. The command line, the error messages and the tables of docs/configuration.md all read
them from there, so they cannot disagree. Values come from TOML files or flags and are checked once, at the border.
"""

from entropix.config.fields import (
    HOST,
    MAX_INT32,
    NO_NAMES,
    NO_TOKEN,
    STATIC,
    TRACED,
    Config,
    check,
    choice,
    fields_of_kind,
    from_mapping,
    parameter,
    rule_config,
)
from entropix.config.generation import (
    BATCH_ROWS,
    LOOKING,
    BacktrackConfig,
    BranchConfig,
    GenerateConfig,
    read_looking,
)
from entropix.config.model import (
    ModelConfig,
    RopeScaling,
    YarnScaling,
)

__all__ = [
    "BATCH_ROWS",
    "HOST",
    "LOOKING",
    "MAX_INT32",
    "NO_NAMES",
    "NO_TOKEN",
    "STATIC",
    "TRACED",
    "BacktrackConfig",
    "BranchConfig",
    "Config",
    "GenerateConfig",
    "ModelConfig",
    "RopeScaling",
    "YarnScaling",
    "check",
    "choice",
    "fields_of_kind",
    "from_mapping",
    "parameter",
    "read_looking",
    "rule_config",
]
