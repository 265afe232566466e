"""What a name means, where several are called so. Decides and says so; changes but models' adapters and aliases.

A name means one thing. Names of models come first, then configured aliases; of two models with an adapter of one name,
the one that had it.
"""

import logging
from collections.abc import Iterable, Mapping

from gateway.dispatch.state import AdapterState, ModelState

log = logging.getLogger(__name__)


def settle_names(models: Iterable[ModelState], aliases: Mapping[str, str], *, in_startup_grace: bool) -> None:
    """Give each model those of its adapters whose names are its own, and note why it lacks the others.

    `in_startup_grace` says that peers are still registering after a start, in no order that means anything: the older
    model comes first then.
    """
    known = list(models)
    aliases = _settle_aliases(known, aliases)
    taken = {alias: f"it is an alias of {target}" for alias, target in aliases.items() if alias != target}
    taken |= {model.name: "a model is called so" for model in known}
    claimants: dict[str, list[ModelState]] = {}
    for model in known:
        for name in model.offered:
            claimants.setdefault(name, []).append(model)
    holders = {name: _first(name, found, in_startup_grace=in_startup_grace) for name, found in claimants.items()}
    for model in known:
        reasons = {name: taken.get(name) or _held(holders[name], model) for name in model.offered}
        _give(model, {name: reason for name, reason in reasons.items() if reason}, aliases)


def _settle_aliases(known: list[ModelState], aliases: Mapping[str, str]) -> dict[str, str]:
    """Take from each model the aliases that models are called: who names one means that model. Returns the others."""
    names = {model.name for model in known}
    free = {alias: target for alias, target in aliases.items() if alias not in names}
    for model in known:
        own = aliases_of(model.name, free)
        for alias in sorted({*model.aliases} - {*own}):
            log.warning("alias %s of %s dropped: a model has that name", alias, model.name)
        model.aliases = own
    return free


def _first(name: str, claimants: list[ModelState], *, in_startup_grace: bool) -> ModelState:
    """Whoever is here goes before who is gone, and keeps a name that it has."""

    def rank(model: ModelState) -> tuple[object, ...]:
        return not model.present, not in_startup_grace and name not in model.adapters, model.created, model.name

    return min(claimants, key=rank)


def _held(holder: ModelState, model: ModelState) -> str:
    return "" if holder is model else f"an adapter of {holder.name} is called so"


def _give(model: ModelState, unserved: Mapping[str, str], aliases: Mapping[str, str]) -> None:
    for name, why in unserved.items():
        if model.unserved.get(name) != why:
            log.warning("the adapter %s of %s is not served under that name: %s", name, model.name, why)
    for name in model.unserved.keys() & model.offered.keys() - unserved.keys():
        log.info("the adapter %s of %s is served from now on", name, model.name)
    model.unserved = dict(unserved)
    model.adapters = {
        name: AdapterState(source, aliases_of(name, aliases))
        for name, source in model.offered.items()
        if name not in unserved
    }


def aliases_of(name: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """All configured names that mean `name`."""
    return tuple(sorted(alias for alias, target in aliases.items() if target == name))
