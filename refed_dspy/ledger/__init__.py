"""The ledger, one SQLite file per folder that records calls, answers and decisions; the budget; the recorder of calls.

Nothing here knows a prompt or a provider.
"""
