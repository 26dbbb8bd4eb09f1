"""Plan → run → ledger: what to do next, doing it, and remembering it. Knows no prompt and no provider."""
