"""The command line: one file a group of commands."""

from refed_dspy.cli.stopping import end_process, stop_on_signals


def main() -> None:
    """The console script. Exit codes: 2 bad input, 1 a run that failed or ended short, 130 Ctrl-C (143 SIGTERM, 129
    SIGHUP)."""
    stop_on_signals()
    from refed_dspy.cli.main import run  # takes a while: Ctrl-C must be in good hands by then

    try:
        run()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            end_process(ended.code)
        raise
