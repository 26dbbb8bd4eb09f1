"""Who is asked: the teacher of each stage, or the pool of them that share its work."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from refed_dspy.config.loading import TeacherConfig, load_config
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.judge import in_role

ANY = ""
"""Every stage that is not named."""
FEEDBACK = "feedback"
"""Every stage that collects feedback."""
PoolShares: TypeAlias = Sequence["PoolShare"]


@dataclass(frozen=True)
class PoolShare:
    """A teacher in a pool. Of what is asked there it gets `weight` over the sum of all weights."""

    teacher: Teacher
    weight: float = 1.0


@dataclass(frozen=True)
class TeachersByStage:
    """Stage → its pool; `ANY` is always there. A teacher that stands in several places is one object."""

    pools: Mapping[str, PoolShares]

    @classmethod
    def of(cls, teacher: Teacher) -> TeachersByStage:
        """One teacher for everything."""
        return cls({ANY: (PoolShare(teacher),)})

    def pool(self, stage: str) -> PoolShares:
        return self.pools.get(stage, self.pools[ANY])

    @property
    def first(self) -> Teacher:
        """The one that stands for all where one must."""
        return self.pools[ANY][0].teacher

    @cached_property
    def teachers(self) -> tuple[Teacher, ...]:
        """Each once, those of no named stage first."""
        each = {id(share.teacher): share.teacher for pool in self.pools.values() for share in pool}
        return tuple(each.values())

    def asks(self, model: str | None) -> bool:
        return any(one.model == model for one in self.teachers)

    @property
    def several(self) -> bool:
        return len(self.teachers) > 1

    @cached_property
    def roles(self) -> dict[str, Teacher]:
        """What each is called in messages → teacher: `teacher` where there is one, else with its model, and with its
        endpoint where models are alike."""
        if not self.several:
            return {"teacher": self.first}
        models = Counter(one.model for one in self.teachers)
        roles: dict[str, Teacher] = {}
        for one in self.teachers:
            name = f"teacher {one.model}" + (f" at {one.endpoint}" if models[one.model] > 1 else "")
            again = sum(taken == name or taken.startswith(f"{name} (") for taken in roles)
            roles[f"{name} ({again + 1})" if again else name] = one
        return roles

    @property
    def slots(self) -> int:
        """Units of work at once: as many as the stage can take whose pool takes most. No teacher is asked for more at
        once than its own settings allow, whatever the draw."""
        return max(sum(share.teacher.concurrency for share in pool) for pool in self.pools.values())

    @property
    def price_source(self) -> str | None:
        """Where the prices are from, each source once."""
        sources = dict.fromkeys(one.price.source for one in self.teachers if one.price is not None)
        return ", ".join(sources) or None

    def identity(self) -> Any:
        """A teacher's identity, or the list of all. Weights and stages are none of it: they shape what is asked next,
        and no answer that is there."""
        if not self.several:
            return self.first.identity
        return [one.identity for one in self.teachers]

    def shape(self) -> Any:
        """Stage → who answers there, without weights: what tells one run from another that is made of the same."""
        return {stage: [_person(share.teacher) for share in pool] for stage, pool in self.pools.items()}

    def facts(self) -> dict[str, Any] | None:
        """In JSON types, for the ledger: stage → members; None for one teacher. Rates: picodollars a token."""
        if not self.several:
            return None
        return {stage: [_facts(share) for share in pool] for stage, pool in self.pools.items()}


def _person(teacher: Teacher) -> list[Any]:
    return [teacher.identity, teacher.endpoint]


def _facts(share: PoolShare) -> dict[str, Any]:
    one, config = share.teacher, share.teacher.config
    return {
        "model": one.model,
        "endpoint": one.endpoint,
        "weight": share.weight,
        "rates": rates_of(one),
        "config": config and config.model_dump(mode="json"),
    }


def rates_of(teacher: Teacher) -> list[int] | None:
    """Picodollars a token: of a prompt, cached, written to a cache, completion. None: unknown."""
    if teacher.price is None:
        return None
    rates = teacher.price.rates
    return [rates.prompt, rates.cached, rates.written, rates.completion]


def open_teachers(
    teacher: TeacherLike | Sequence[TeacherLike] | None,
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None = None,
    stages: Sequence[str] = (),
) -> TeachersByStage:
    """Set up who is asked.

    Args:
        teacher: what `open_teacher` takes, or a list of such.
        teachers: stage → the same, for stages that others than `teacher` answer. `feedback`: every stage of feedback.
        stages: those that the program has.

    Raises:
        ConfigError: a stage that there is not, or a teacher that cannot be used as it is set.
    """
    opening = _Opening()
    pools = {ANY: opening.pool(teacher, "teacher")}
    named = _by_stage(teachers or {}, stages)
    pools |= {stage: opening.pool(given, f"teachers: {key}") for stage, (key, given) in named.items()}
    return TeachersByStage(pools)


def stages_of(program: Any) -> list[str]:
    """The stages of a program, of one's own too: it asks as its predictors are called."""
    names = getattr(program, "stage_names", None) or [name for name, _ in program.named_predictors()]
    return list(names)


def _by_stage(given: Mapping[str, Any], stages: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Stage → (the key that named it, who). A stage's own name wins over `feedback`."""
    of_feedback = [stage for stage in stages if stage.endswith(f"_{FEEDBACK}")]
    known = [*stages, *([FEEDBACK] if of_feedback else [])]
    named: dict[str, tuple[str, Any]] = {}
    for key in sorted(given, key=lambda key: key != FEEDBACK):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the program's stages are {', '.join(known)}"
            raise ConfigError(f"teachers: {one_line(key, 60)}: no such stage; {hint}")
        named |= dict.fromkeys(of_feedback if key == FEEDBACK else [key], (key, given[key]))
    return named


class _Opening:
    """Opens teachers, each once: equal ones in several places share answers in flight, connections and limits."""

    def __init__(self) -> None:
        self._opened: list[tuple[Any, Teacher]] = []

    def pool(self, given: Any, where: str) -> PoolShares:
        with in_role(where):
            shares = [self._share(one) for one in _listed(given)]
        seen = Counter(digest(_person(share.teacher)) for share in shares)
        if twice := next((share for share in shares if seen[digest(_person(share.teacher))] > 1), None):
            name = f"{twice.teacher.model} at {twice.teacher.endpoint}"
            raise ConfigError(f"{where}: {name} stands there twice; give it a weight instead")
        if not shares:
            raise ConfigError(f"{where}: an empty list; name a teacher")
        return tuple(shares)

    def _share(self, given: Any) -> PoolShare:
        if not isinstance(given, TeacherConfig):
            return PoolShare(self._known(given) or self._keep(given, open_teacher(given)))
        config = given if given.weight == 1 else given.model_copy(update={"weight": 1.0})
        beside = next((one for _, one in self._opened if _same_server(one.config, config)), None)
        return PoolShare(self._known(config) or self._keep(config, open_teacher(config, beside)), given.weight)

    def _known(self, given: Any) -> Teacher | None:
        return next((one for what, one in self._opened if what is given or _equal(what, given)), None)

    def _keep(self, given: Any, teacher: Teacher) -> Teacher:
        self._opened.append((given, teacher))
        return teacher


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, TeacherConfig) and isinstance(other, TeacherConfig) and one == other


def _same_server(one: TeacherConfig | None, other: TeacherConfig) -> bool:
    return one is not None and (one.model, one.gguf, one.api_base) == (other.model, other.gguf, other.api_base)


def _listed(given: Any) -> Iterator[Any]:
    """Each teacher of what was given: files are read, since one may hold a list."""
    if isinstance(given, str | Path):
        given = load_config(environ={}, teacher=str(given)).teacher
    if isinstance(given, list | tuple):
        for part in given:
            yield from _listed(part)
    else:
        yield given
