"""What is needed of DSPy and has no public name: everything private that this package imports is here.

- How lm15 writes a request and its settings as JSON: the keys of all ledgers are digests of it, so another way to write
  them would pay for every answer again.
- The path of Azure's dated API in an access policy (`HostSpec`).
- Which settings of a `dspy.LM` are about its connection, so that they are not sent as parameters.
- The price table that DSPy ships.

The pin of DSPy below its next minor version guards them, and `tests/teachers` and `tests/official` ask for each.
"""

from __future__ import annotations

import os

# Without this the price table would be fetched from the network at each start.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

from dspy._vendor.lm15.features import HostSpec
from dspy._vendor.lm15.serde import config_to_dict, message_to_dict, request_to_dict
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.model_metadata import model_info, source_info

__all__ = [
    "CLIENT_KEYS",
    "HostSpec",
    "config_to_dict",
    "message_to_dict",
    "model_info",
    "request_to_dict",
    "source_info",
]
