"""The program that `llama.LlamaServer` runs in a process of its own: it loads one model and serves it.

Run by path, so it imports nothing of this package. Its one argument is a JSON object: `gguf`, `name`, `slots`,
`window`, `threads`, `cache_ram_mib`, `host`, and `site`, the folder that `xllamacpp` is imported from. It
prints one line of JSON, {"url": ...}, {"missing": reason} or {"refused": reason}, and then serves until its
standard input ends, which it also does when the parent dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

# Prompts are worked through this many tokens at a time. llama.cpp's own default is 2048: the answers of the
# other slots would stand still, and a cancelled request would go on, for as long as 2048 tokens take.
PROMPT_STEP = 512
ERRORS_ONLY = 1


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reply:
        os.dup2(2, 1)  # whatever llama.cpp prints goes to the log, not between the parent and its reply
        settings = json.loads(sys.argv[1])
        engine, outcome = load(settings)
        print(json.dumps(outcome), file=reply)
    if engine is not None:
        sys.stdin.buffer.read()
    sys.stdout.flush()
    # The engine's own shutdown waits for every request to be answered, some of which never are.
    os._exit(0)


def load(settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """The running engine (None where there is none) and the reply for the parent."""
    sys.path.insert(0, settings["site"])
    try:
        import xllamacpp
    except (ImportError, OSError) as error:
        return None, {"missing": str(error)}
    try:
        engine = xllamacpp.Server(parameters(xllamacpp, settings))
        # One token's answer proves that the model works and that the engine's loop runs.
        engine.handle_completions({"prompt": "a", "max_tokens": 1, "cache_prompt": False})
    except RuntimeError as error:
        return None, {"refused": str(error)}
    return engine, {"url": engine.listening_address}


def parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.model_alias = {settings["name"]}  # else every answer names the file's full path
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["window"]
    params.n_batch = PROMPT_STEP
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = settings["cache_ram_mib"]
    params.hostnames = [settings["host"]]
    params.port = 0  # any free one
    params.cors_origins = ""  # no page in a browser may read the answers
    params.ui = False
    params.verbosity = ERRORS_ONLY
    return params


if __name__ == "__main__":
    main()
