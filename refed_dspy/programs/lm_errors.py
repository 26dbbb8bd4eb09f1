"""The seam between a teacher, which makes calls, and the books, which keep them.

Before it sends anything a teacher asks the books for leave, and afterwards tells them what came of it. The books are
held in a context variable, so concurrent work keeps apart without being handed anything. A program called on its
own has none, and asks nobody.
"""

from __future__ import annotations

from dspy.utils.exceptions import LMConfigurationError, LMError, LMTransportError


class AnswerCut(LMError):
    """Raised by a teacher's engine: the answer ended at the token limit. DSPy alone would accept it."""


class AnswerRefused(LMError):
    """Raised by a teacher's engine: a content filter, or the model, declined."""


class NotReached(LMTransportError):
    """Raised by a teacher's engine: no connection could be made, so nothing was sent."""


class NotAnApi(LMError):
    """Raised by a teacher's engine: a web page came back where an API should be."""


class StillLimited(LMError):
    """Raised by a teacher's engine: the endpoint has refused everything for its rate limit, for minutes."""


class NotAnswering(LMConfigurationError):
    """A model that is not there, or not there any more: for whoever asks it, like a wrong setting."""


class NoBatches(LMError):
    """Raised by a teacher's engine: the endpoint takes no batches."""


class BatchRejected(LMError):
    """Raised by a teacher's engine: the service refused a whole batch, so nothing of it was sent to the model."""


class WorkEnds(LMError):
    """Raised by a teacher's engine: the run ends, and no other teacher is asked instead. Whether its price is to be
    paid is for a person to say."""


class BatchOutOfReach(WorkEnds):
    """Raised by a teacher's engine: a batch that is under way cannot be asked about. It is in the ledger."""


class LMCapReached(LMError):
    """`errors.CapReached` in DSPy's words, which lets LMErrors through as they are; or a compile is ending."""
