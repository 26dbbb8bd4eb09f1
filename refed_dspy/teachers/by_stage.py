"""Which teachers a program asks: one, or for each stage a teacher or a pool of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.ledger.settings import ANY as ANY
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.judge import in_role
from refed_dspy.teachers.teacher import read_teacher
from refed_dspy.text import nearest

FEEDBACK = "feedback"
"""The key that stands for every stage that collects feedback."""
PoolShares: TypeAlias = Sequence["PoolShare"]


@dataclass(frozen=True)
class PoolShare:
    """A teacher in a pool. It gets `weight` over the sum of all weights of the pool's questions."""

    teacher: Teacher
    weight: float = 1.0


@dataclass(frozen=True)
class TeachersByStage:
    """Stage → its pool; `ANY` is always a key. A teacher in several pools is one object."""

    pools: Mapping[str, PoolShares]

    @classmethod
    def of(cls, teacher: Teacher) -> TeachersByStage:
        """One teacher for everything."""
        return cls({ANY: (PoolShare(teacher),)})

    def pool(self, stage: str) -> PoolShares:
        return self.pools.get(stage, self.pools[ANY])

    @property
    def first(self) -> Teacher:
        """The first teacher of the `ANY` pool, for where a single teacher is needed."""
        return self.pools[ANY][0].teacher

    @cached_property
    def teachers(self) -> tuple[Teacher, ...]:
        """All teachers, each once; those of the `ANY` pool first."""
        unique = {id(share.teacher): share.teacher for pool in self.pools.values() for share in pool}
        return tuple(unique.values())

    def asks(self, model: str | None) -> bool:
        """Whether any of the teachers has this model."""
        return any(teacher.model == model for teacher in self.teachers)

    @property
    def several(self) -> bool:
        return len(self.teachers) > 1

    @cached_property
    def roles(self) -> dict[str, Teacher]:
        """Name for messages → teacher: `teacher` where there is only one, else with its model, and with its endpoint
        where several have the same model."""
        if not self.several:
            return {"teacher": self.first}
        models = Counter(teacher.model for teacher in self.teachers)
        roles: dict[str, Teacher] = {}
        for teacher in self.teachers:
            name = f"teacher {teacher.model}" + (f" at {teacher.endpoint}" if models[teacher.model] > 1 else "")
            namesakes = sum(role == name or role.startswith(f"{name} (") for role in roles)
            roles[f"{name} ({namesakes + 1})" if namesakes else name] = teacher
        return roles

    @property
    def slots(self) -> int:
        """Units of work at once: the total concurrency of the largest pool. However questions are drawn, no teacher
        gets more calls at once than its own settings allow."""
        return max(sum(share.teacher.concurrency for share in pool) for pool in self.pools.values())

    @property
    def price_source(self) -> str | None:
        """Where the prices come from, each source once; None where no price is known."""
        sources = dict.fromkeys(teacher.price.source for teacher in self.teachers if teacher.price is not None)
        return ", ".join(sources) or None

    def identity(self) -> Any:
        """The teacher's identity, or the list of all identities. Weights and stages are left out: they decide who is
        asked next, and change no answer that exists."""
        if not self.several:
            return self.first.identity
        return [teacher.identity for teacher in self.teachers]

    def shape(self) -> Any:
        """Stage → who answers there, without weights. Runs that differ in it ask differently."""
        return {stage: [_who(share.teacher) for share in pool] for stage, pool in self.pools.items()}

    def recorded(self) -> dict[str, Any]:
        """`teacher` and `teachers` as the ledger keeps them (`ledger.settings`), in JSON types."""
        pools = self.pools if self.several else {ANY: self.pools[ANY]}
        stored = {stage: [recorded(share) for share in pool] for stage, pool in pools.items()}
        return {"teacher": stored.pop(ANY), "teachers": stored}


def _who(teacher: Teacher) -> list[Any]:
    """What distinguishes one teacher from another in a pool."""
    return [teacher.identity, teacher.endpoint]


def recorded(share: PoolShare) -> dict[str, Any]:
    """A model as the ledger keeps it (`ledger.settings.Model`)."""
    teacher, config = share.teacher, share.teacher.config
    return {
        "model": teacher.model,
        "endpoint": teacher.endpoint,
        "weight": share.weight,
        "rates": None if teacher.price is None else list(astuple(teacher.price.rates)),
        "config": config and config.model_dump(mode="json"),
    }


def open_teachers(
    teacher: TeacherLike | Sequence[TeacherLike] | None,
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None = None,
    stages: Sequence[str] = (),
) -> TeachersByStage:
    """Set up the teachers of a program.

    Args:
        teacher: what `open_teacher` takes, or a list of such.
        teachers: stage → the same, for stages that teachers other than `teacher` answer. The key `feedback` names
            every feedback stage.
        stages: the stages of the program.

    Raises:
        ConfigError: an unknown stage, or a teacher that cannot be used with its settings.
    """
    opening = _Opening()
    pools = {ANY: opening.pool(teacher, "teacher")}
    named = _by_stage(teachers or {}, stages)
    pools |= {stage: opening.pool(likes, f"teachers: {key}") for stage, (key, likes) in named.items()}
    return TeachersByStage(pools)


def _by_stage(teachers: Mapping[str, Any], stages: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Stage → (the key that named it, its teacher or list). A stage's own name wins over `feedback`."""
    of_feedback = [stage for stage in stages if stage.endswith(f"_{FEEDBACK}")]
    keys = [*stages, *([FEEDBACK] if of_feedback else [])]
    named: dict[str, tuple[str, Any]] = {}
    for key in sorted(teachers, key=lambda key: key != FEEDBACK):
        if key not in keys:
            near = nearest(key, keys)
            hint = f"did you mean {near}?" if near else f"the program's stages are {', '.join(keys)}"
            raise ConfigError(f"teachers: {one_line(key, 60)}: no such stage; {hint}")
        named |= dict.fromkeys(of_feedback if key == FEEDBACK else [key], (key, teachers[key]))
    return named


class _Opening:
    """Opens teachers, each once: equal ones in several pools share answers in flight, connections and limits."""

    def __init__(self) -> None:
        self._opened: list[tuple[Any, Teacher]] = []

    def pool(self, likes: Any, where: str) -> PoolShares:
        """`likes`: one TeacherLike or a list of them; `where`: the setting they come from, for messages."""
        with in_role(where):
            shares = [self._share(like) for like in _flattened(likes, where if where == "teacher" else "")]
        seen = Counter(digest(_who(share.teacher)) for share in shares)
        if twice := next((share for share in shares if seen[digest(_who(share.teacher))] > 1), None):
            name = f"{twice.teacher.model} at {twice.teacher.endpoint}"
            raise ConfigError(f"{where}: {name} is listed twice; give it a weight instead")
        if not shares:
            raise ConfigError(f"{where}: the list is empty; add a teacher")
        return tuple(shares)

    def _share(self, like: TeacherLike) -> PoolShare:
        if not isinstance(like, TeacherConfig):
            return PoolShare(self._teacher(like))
        config = like if like.weight == 1 else like.model_copy(update={"weight": 1.0})
        beside = next((teacher for _, teacher in self._opened if _same_server(teacher.config, config)), None)
        return PoolShare(self._teacher(config, beside), like.weight)

    def _teacher(self, like: TeacherLike, beside: Teacher | None = None) -> Teacher:
        if (opened := next((teacher for other, teacher in self._opened if other == like), None)) is not None:
            return opened
        self._opened.append((like, teacher := open_teacher(like, beside)))
        return teacher


def _same_server(first: TeacherConfig | None, second: TeacherConfig) -> bool:
    return first is not None and (first.model, first.gguf, first.api_base) == (
        second.model,
        second.gguf,
        second.api_base,
    )


def _flattened(likes: Any, role: str) -> Iterator[TeacherLike]:
    """Each TeacherLike of a value or of nested lists. Names and files are read as those of `role`: a file may hold a
    list."""
    if isinstance(likes, str | Path | Mapping):
        likes = read_teacher(likes, role)
    if isinstance(likes, list | tuple):
        for like in likes:
            yield from _flattened(like, role)
    else:
        yield likes
