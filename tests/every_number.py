"""The numbers of all rules in one config, as tests of formulas want it: it tells any rule what it needs."""

import dataclasses

from entropix.config import rule_config
from entropix.samplers import SAMPLERS, RuleConfig

_FIELDS = {
    field.name: (field.type, field)
    for sampler in reversed(SAMPLERS.values())
    for field in dataclasses.fields(sampler.config)
}
EveryNumber = rule_config(
    type(
        "EveryNumber",
        (RuleConfig,),
        {
            "__module__": __name__,
            "__annotations__": {name: kind for name, (kind, _) in _FIELDS.items()},
            **{
                name: dataclasses.field(default=field.default, metadata=field.metadata)
                for name, (_, field) in _FIELDS.items()
            },
        },
    )
)
