"""The command line: one file a group of commands."""

from refed_dspy.cli.ending import end_process, exit_code, flushed, stop_on_signals, told


def main() -> None:
    """The console script. Exit codes: 2 bad input, 1 a run that failed or ended short, 130 Ctrl-C (143 SIGTERM, 129
    SIGHUP)."""
    code: object = 0
    try:
        stop_on_signals()
        from refed_dspy.cli.main import run  # takes a while

        run()
    except SystemExit as ended:
        code = exit_code() if ended.code == 130 else ended.code  # Click's, where a signal came before the command
    except (KeyboardInterrupt, Exception) as error:  # before a command began; what commands raise ends in `main.py`
        if (known := told(error)) is None:
            raise
        code = known
    if isinstance(code, int):
        end_process(code := flushed(code))
    raise SystemExit(code)
