JUDGE = {"model": "openai/judge", "max_tokens": 64, "concurrency": 6, "price": {"prompt": 1.0, "completion": 10.0}}
"""The settings of an evaluation's judge."""
