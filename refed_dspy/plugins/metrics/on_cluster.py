"""The models that statistics need, on the nodes of a cluster: each of its slots has one, and texts go to whichever is
free. What compares rows with one another stays in one process, which is faster up to millions of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.errors import ConfigError, TeacherError, one_line
from refed_dspy.measures.embedder import Embedder, Vectors
from refed_dspy.plugins.cluster.ray_cluster import connected, on_node, slots
from refed_dspy.plugins.metrics.figures import Tools, open_scorer, open_tools
from refed_dspy.plugins.metrics.perplexity import ScoredText

BATCH = 32
"""Texts that one model gets at a time: few enough that all are busy to the end, enough that asking costs nothing."""
OPENED = 600.0
"""Seconds in which all copies of a model must be open: some weigh gigabytes."""


class _Copy:
    """An actor: a model on some node."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._model = opened()

    def there(self) -> bool:
        """Whether it is there: asked before anything is sent."""
        return True

    def of(self, method: str, *texts: Sequence[str]) -> Any:
        """What the model's `method` says of these texts."""
        return getattr(self._model, method)(*texts)


class OnNodes:
    """Copies of one model, of which each call is asked by whoever is free. One that dies is opened anew by Ray."""

    def __init__(self, ray: Any, opened: Callable[[], Any], name: str, *, on_gpus: bool = False) -> None:
        """`opened`: opens the model, on a node; `on_gpus`: on each GPU of the cluster, if it has any.

        Raises ConfigError where a node cannot.
        """
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util import ActorPool

        begun_anew = {"max_restarts": -1, "max_task_retries": -1}
        actors = [ray.remote(_Copy).options(**begun_anew, **place).remote(opened) for place in _places(ray, on_gpus)]
        try:
            ray.get([actor.there.remote() for actor in actors], timeout=OPENED)
        except GetTimeoutError:
            raise ConfigError(
                f"{name}: is not open on all nodes after {OPENED:.0f} s; their slots may be taken by other work"
            ) from None
        except RayError as error:
            raise ConfigError(f"{name}: cannot be opened on a node: {_why(error)}") from None
        self._pool, self._name = ActorPool(actors), name

    def map(self, method: str, *texts: Sequence[str]) -> list[Any]:
        """What `method` says of each batch, in order. Raises TeacherError where it fails."""
        from ray.exceptions import RayError

        batches = [tuple(part[at : at + BATCH] for part in texts) for at in range(0, len(texts[0]), BATCH)]
        try:
            return list(self._pool.map(lambda actor, batch: actor.of.remote(method, *batch), batches))
        except RayError as error:
            raise TeacherError(f"{self._name}: {_why(error)}") from None


class ClusterEmbedder:
    """An `Embedder` on every slot of a cluster."""

    def __init__(self, ray: Any) -> None:
        self._copies = OnNodes(ray, Embedder.open, "embeddings")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """As `Embedder.embed`."""
        return np.concatenate(self._copies.map("embed", texts)) if texts else np.zeros((0, 384), dtype=np.float32)


class ClusterScorer:
    """A scorer on every slot of a cluster."""

    def __init__(self, ray: Any, config: ScorerConfig) -> None:
        self._copies = OnNodes(ray, partial(open_scorer, config), "scorer", on_gpus=config.api_base is None)

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`."""
        return [score for batch in self._copies.map("nll", contexts, texts) for score in batch]


@contextmanager
def tools_on(cluster: str, embeddings: bool | None, scorer: ScorerConfig | None) -> Iterator[Tools]:
    """`open_tools`, with the models on the nodes of `cluster`. Raises ConfigError."""
    with connected(cluster) as ray:
        yield open_tools(embeddings, scorer, partial(ClusterEmbedder, ray), partial(ClusterScorer, ray))


def _places(ray: Any, on_gpus: bool) -> list[dict[str, Any]]:
    """The options of each copy: one a GPU, which Ray hides from whoever asks for none, or one a slot."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if on_gpus else 0
    return [{"num_gpus": 1}] * gpus or [on_node(node) for node in ray.nodes() for _ in range(slots(node))]


def _why(error: Exception) -> str:
    """The reason in an error of Ray's, which has the remote traceback in its text."""
    return one_line(getattr(error, "cause", None) or str(error).strip().splitlines()[-1], 300)
