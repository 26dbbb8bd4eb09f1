"""The command line: one file a group of commands."""

import os

from refed_dspy.cli.stopping import end_process, stop_on_signals


def main() -> None:
    """The console script. Exit codes: 2 bad input, 1 a run that failed or ended short, 130 Ctrl-C (143 SIGTERM, 129
    SIGHUP)."""
    stop_on_signals()
    from refed_dspy.cli.main import run  # takes a while: Ctrl-C must be in good hands by then

    try:
        try:
            run()
        except SystemExit as ended:
            if isinstance(ended.code, int):
                end_process(ended.code)
            raise
    except KeyboardInterrupt as late:
        if not isinstance(settled := late.__context__, SystemExit) or not isinstance(settled.code, int):
            raise
        end_process(settled.code)  # the command had ended: its output is flushed, and nobody is waited for
        os._exit(settled.code)
