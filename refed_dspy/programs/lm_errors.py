"""The errors of teachers' engines, as kinds of DSPy's LMError, which passes through DSPy's layers as it is.

`programs/asking.py` translates them into the errors of this package.
"""

from __future__ import annotations

from dspy.utils.exceptions import LMConfigurationError, LMError, LMTransportError


class AnswerCut(LMError):
    """The answer ended at the token limit. DSPy alone would accept it."""


class AnswerRefused(LMError):
    """A content filter, or the model, declined."""


class NotReached(LMTransportError):
    """No connection could be made, so nothing was sent."""


class NotAnApi(LMError):
    """The endpoint answered with a web page: it is not an API."""


class StillLimited(LMError):
    """The endpoint's rate limit has refused every request for minutes."""


class NotAnswering(LMConfigurationError):
    """The model is not there, or not any more: handled like a wrong setting."""


class NoBatches(LMError):
    """The endpoint takes no batches."""


class BatchRejected(LMError):
    """The service refused a whole batch, so nothing of it was sent to the model."""


class WorkEnds(LMError):
    """The run ends, and no other teacher is asked instead: a person must decide whether to pay another one's price."""


class BatchOutOfReach(WorkEnds):
    """A batch that is under way cannot be queried. It is in the ledger."""


class LMCapReached(LMError):
    """`errors.CapReached` as an LMError; or a compile is ending."""
