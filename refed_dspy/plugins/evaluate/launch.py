"""The program that runs a benchmark's code: `launch.py -m MODULE ARGUMENTS…`, or `launch.py SCRIPT ARGUMENTS…`.

It is run by path, by the benchmark's Python, so it imports nothing of this package. It ends as soon as its standard
input does, however the process that started it ended.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))  # noqa: PTH100, PTH120 — as Python does
        runpy.run_path(sys.argv[0], run_name="__main__")


def end_with_parent() -> None:
    while os.read(0, 4096):  # not by sys.stdin: the interpreter would want its lock as it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
