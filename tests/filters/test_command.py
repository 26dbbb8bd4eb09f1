"""A check by command: what decides, what is a row's failure, in a run and over data; and that nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.errors import CheckFailed, ConfigError, NothingKept, RunDirError, RunStopped, TooManyFailed
from refed_dspy.filters.base import Decision
from refed_dspy.filters.command import CommandCheck
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import DataRow, Reference
from tests.filters.filtered_runs import Teacher, dropped, kept_by, run
from tests.support import ROOT
from tests.support.said import Said

ROW = DataRow(1, "Say it.", "It is said.")
LONG = DataRow(1, "Say it.", "It is said. " * 100_000)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def by(code: str) -> list[str]:
    """A check in Python; `row` is the row, `drop(reason)` drops it."""
    start = "import json, os, sys\nrow = json.load(sys.stdin)\ndef drop(reason):\n  print(reason)\n  sys.exit(1)\n"
    return python(start + code)


def failure(command: list[str], row: DataRow = ROW, **settings: Any) -> str:
    with pytest.raises(CheckFailed) as failed:
        CommandCheck(command, **settings).check(row)
    assert "\n" not in str(failed.value)
    return str(failed.value).removeprefix(f"{sys.executable}: ")


# --- what decides


def test_the_exit_code_decides_and_the_first_line_is_the_reason() -> None:
    assert CommandCheck(["true"]).check(ROW) == Decision(True)
    assert CommandCheck(by("print('fine')")).check(ROW) == Decision(True)
    assert CommandCheck(by("drop('  too\\tshort\\nand more')")).check(ROW) == Decision(False, "too short")
    assert len(CommandCheck(by("drop('x' * 9999)")).check(ROW).reason) == 160


def test_without_a_line_of_output_the_last_line_of_its_errors_is_the_reason() -> None:
    assert CommandCheck(["false"]).check(ROW) == Decision(False, "no reason given")
    assert CommandCheck(by("import nosuch")).check(ROW).reason == "ModuleNotFoundError: No module named 'nosuch'"


def test_a_check_reads_the_whole_row_and_then_the_end() -> None:
    reference = Reference(instruction="i", response="r", system="Be brief.")
    row = DataRow(7, "Überall \ud800", "r", "plain", {"id": 3, "when": object}, reference)
    shown = json.loads(CommandCheck(by("drop(json.dumps(sorted(row)))")).check(row).reason)
    assert shown == ["criteria", "fields", "instruction", "number", "plain", "reference", "response", "system"]
    told = "row['number'], row['plain'], row['fields']['id'], row['system'], row['reference']['response']"
    assert (
        CommandCheck(by(f"drop([{told}, sys.stdin.read()])")).check(row).reason
        == "[7, 'plain', 3, 'Be brief.', 'r', '']"
    )
    assert CommandCheck(by("drop(len(row['response']))")).check(LONG).reason == "1200000"


def test_no_shell_reads_the_command() -> None:
    assert CommandCheck(["sh", "-c", 'echo "$1"; exit 1', "x", "$HOME; *"]).check(ROW).reason == "$HOME; *"


# --- what is a row's failure


FAILURES = {
    "another exit code": by("print('kept?'); print('first\\nlast', file=sys.stderr); sys.exit(2)"),
    "killed": ["sh", "-c", "kill -9 $$"],
    "crashed": ["sh", "-c", "kill -SEGV $$"],
    "not there": ["./no/such-check"],
    "not in the path": ["no-such-check"],
    "a folder": ["/"],
    "not executable": ["./plain.txt"],
    "no program's form": ["./broken"],
    "a zero byte": ["./check\0"],
}


def test_each_failure_is_one_line(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("#!/bin/sh\nexit 0\n", "utf-8")
    Path("broken").write_bytes(b"\x7fELF nothing")
    Path("broken").chmod(0o755)
    said({case: failure(command) for case, command in FAILURES.items()})


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """The file into which checks write the numbers of their processes. At the end, none of them is left."""
    file = tmp_path / "pids"
    file.touch()
    yield file
    numbers = [int(number) for number in file.read_text("utf-8").split()]
    assert numbers
    for _ in range(1_000):  # one that was killed takes a moment
        if not (left := [number for number in numbers if at_work_of(number) not in {"", "Z"}]):
            break
        time.sleep(0.01)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def at_work_of(number: int) -> str:
    """A process's state, empty where there is none. An orphan may wait to be buried by its new parent, never by us."""
    try:
        state, parent = Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    assert state != "Z" or int(parent) != os.getpid()
    return state


NOTE = 'echo $$ >> "$0"; '


def test_out_of_time_it_is_killed_with_whatever_it_started(pids: Path) -> None:
    script = NOTE + 'sh -c \'echo $$ >> "$0"; sleep 600\' "$0" & sh -c \'trap "" TERM; sleep 600\'; exit 0'
    assert failure(["sh", "-c", script, str(pids)], seconds=0.5) == "sh: no decision within 0.5 s"
    assert len(pids.read_text("utf-8").split()) == 2


def test_a_process_that_it_leaves_behind_with_its_pipes_holds_nobody_up(pids: Path) -> None:
    script = NOTE + 'sh -c \'echo $$ >> "$0"; sleep 600\' "$0" & while [ $(wc -l < "$0") -lt 2 ]; do :; done; '
    check = CommandCheck(["sh", "-c", script + "echo left; exit 1", str(pids)], seconds=600)
    assert check.check(ROW) == Decision(False, "left")


def test_what_it_writes_neither_blocks_it_nor_is_kept() -> None:
    much = "sys.stderr.write('e' * 3_000_000); sys.stdout.write('first\\n' + 'x' * 3_000_000); sys.exit(1)"
    assert CommandCheck(by(much), seconds=600).check(ROW) == Decision(False, "first")
    assert failure(["yes"], seconds=0.5) == "yes: no decision within 0.5 s"
    last = "sys.stderr.write('e' * 3_000_000 + '\\nthe last'); sys.exit(3)"
    assert failure(by(last), seconds=600) == "exit code 3: the last"


def test_one_that_closes_its_pipes_and_goes_on_is_waited_for() -> None:
    assert CommandCheck(["sh", "-c", "exec >&- 2>&- <&-; sleep 0.2; exit 1"]).check(ROW).reason == "no reason given"
    assert failure(["sh", "-c", "exec >&- 2>&- <&-; sleep 600"], seconds=0.3).endswith("no decision within 0.3 s")


def test_one_that_reads_nothing_of_a_long_row_decides() -> None:
    assert CommandCheck(["sh", "-c", "echo unread; exit 1"]).check(LONG) == Decision(False, "unread")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert CommandCheck(["sh", "-c", r"printf 'a\377\033[1mb\n'; exit 1"]).check(ROW).reason == "a\ufffd?[1mb"


def test_it_gets_no_keys_and_its_words_are_told_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-3fQ8vZ1nLxT7bRm4WcY8dKe"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test")
    names = CommandCheck(by("drop(sorted(os.environ))")).check(ROW).reason
    assert "PATH" in names and "KEY" not in names and "PROXY" not in names
    assert key not in CommandCheck(by(f"drop('{key}')")).check(ROW).reason
    assert key not in failure(by(f"sys.exit('{key}') if 0 else os._exit(print('{key}', file=sys.stderr) or 4)"))


# --- over data


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "response": f"It is {number}."} for number in range(1, count + 1)]


NUMBER = "number = row['number']\n"


def filtered(count: int, out: Path, command: Any, **settings: Any) -> Any:
    return refed_dspy.filter_data(rows(count), [{"command": command}], out=out, progress=False, **settings)


def test_over_data_each_row_is_decided_in_order(tmp_path: Path) -> None:
    command = by(NUMBER + "if number % 3 == 0: drop(f'third {number % 2}')")
    made = filtered(31, tmp_path / "out", command)
    assert [row["refed_filters"]["row"] for row in made.kept()] == [n for n in range(1, 32) if n % 3]
    assert made.funnel()[0]["reasons"] == {"third 0": 5, "third 1": 5} and not made.problem
    assert list(filtered(31, tmp_path / "out", command).kept()) == list(made.kept())


def test_of_those_that_pass_the_first_are_kept(tmp_path: Path) -> None:
    command = by(NUMBER + "if number % 2: drop('odd')")
    made = filtered(40, tmp_path / "out", {"run": command, "keep": 3, "at_once": 3})
    assert [row["refed_filters"]["row"] for row in made.kept()] == [2, 4, 6]
    assert made.funnel()[0]["reasons"] == {"not checked: enough were kept": 34, "odd": 3}


def test_a_failure_over_data_leaves_the_row_undecided_and_says_why(tmp_path: Path) -> None:
    marker = tmp_path / "mended"
    command = by(NUMBER + f"if number % 8 == 0 and not os.path.exists({str(marker)!r}): sys.exit(f'{{number}}') if 0"
                 " else (print(f'at {number}', file=sys.stderr), os._exit(5))")  # fmt: skip
    made = filtered(30, tmp_path / "out", command)
    undecided = [json.loads(line) for line in (tmp_path / "out/undecided.jsonl").read_text("utf-8").splitlines()]
    why = {row["refed_filters"]["row"]: row["refed_filters"]["reason"] for row in undecided}
    assert why == {number: f"{sys.executable}: exit code 5: at {number}" for number in (8, 16, 24)}
    assert made.problem.startswith("command failed on 3 rows (in undecided.jsonl), the last: ")
    assert made.problem.endswith("exit code 5: at 24; run the same command to try again")
    assert len(list(made.kept())) == 27 and "judge" not in " ".join(made.lines())
    marker.touch()
    assert len(list(filtered(30, tmp_path / "out", command).kept())) == 30
    assert not (tmp_path / "out/undecided.jsonl").exists()


def test_a_command_that_fails_on_most_rows_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailed, match=re.escape("command failed on 3 of the last 3 rows, the last: nosuch: can")):
        filtered(3, tmp_path / "few", ["nosuch"])
    counted = tmp_path / "counted"
    script = ["sh", "-c", 'echo x >> "$0"; exit 9', str(counted)]
    with pytest.raises(TooManyFailed, match=re.escape("command failed on 20 of the last 20 rows, the last: sh: exit")):
        filtered(500, tmp_path / "many", script)
    assert 20 <= len(counted.read_text("utf-8").split()) <= 45
    assert not (tmp_path / "many/kept.jsonl").exists()


def test_at_most_so_many_run_at_once(tmp_path: Path) -> None:
    code = f"""
import time
here = {str(tmp_path)!r} + "/now"
os.makedirs(here, exist_ok=True)
open(f"{{here}}/{{os.getpid()}}", "w").close()
seen = 0
for _ in range(10):
    seen = max(seen, len(os.listdir(here)))
    time.sleep(0.01)
os.remove(f"{{here}}/{{os.getpid()}}")
drop(seen)
"""
    made = filtered(24, tmp_path / "out", {"run": by(code), "at_once": 3})
    assert max(int(seen) for seen in made.funnel()[0]["reasons"]) == 3


def test_two_commands_have_a_label_each_and_work_beside_other_filters(tmp_path: Path) -> None:
    filters = [{"command": by("if row['number'] > 8: drop('late')")}, "refusals", {"command": ["true"]}]
    made = refed_dspy.filter_data(rows(10), filters, out=tmp_path / "out")
    assert [(each["filter"], each["kept"]) for each in made.funnel()] == [
        ("command", 8), ("refusals", 8), ("command 2", 8)
    ]  # fmt: skip


# --- in a run

EVEN = "import re\nif int(re.search('[0-9]+', row['response'])[0]) % 2: drop('odd')\n"


def noting(file: Path) -> str:
    return f"open({str(file)!r}, 'a').write(row['instruction'] + '\\n')\n"


def test_a_run_keeps_what_passes_and_a_resume_checks_nothing_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    filters = [{"command": by(noting(seen) + EVEN)}]
    made = run(tmp_path / "run", Teacher(), filters, size=8)
    assert made.complete and len(made.samples) == 8 == len(kept_by(tmp_path / "run", "command"))
    assert {(row["filter"], row["reason"]) for row in dropped(tmp_path / "run")} == {("command", "odd")}
    before = seen.read_text("utf-8").splitlines()
    assert len(before) == len(set(before)) == 8 + len(dropped(tmp_path / "run"))
    more = run(tmp_path / "run", Teacher(), filters, size=12)
    after = seen.read_text("utf-8").splitlines()
    assert len(more.samples) == 12 and after[: len(before)] == before and len(after) == len(set(after))


def test_another_command_is_another_run(tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [{"command": ["true"]}], size=2)
    for other in (["true", "--strict"], {"run": ["true"], "seconds": 5}):
        with pytest.raises(RunDirError):
            run(tmp_path / "run", Teacher(), [{"command": other}], size=2)


def test_a_failure_in_a_run_is_that_rows_and_the_next_start_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "mended"
    code = (
        f"import re\nif not os.path.exists({str(marker)!r}) and int(re.search('[0-9]+', row['response'])[0]) % 8 < 2: "
    )
    filters = [{"command": by(code + "print('not\\nnow', file=sys.stderr); sys.exit(3)")}]
    made = run(tmp_path / "run", Teacher(), filters, size=12)
    assert made.complete and made.failures
    assert {(each.stage, each.kind, each.reason) for each in made.failures} == {
        ("filters: command", "own code", f"{sys.executable}: exit code 3: now")
    }
    assert sum("the row counts as failed" in record.message for record in caplog.records) == 1
    marker.touch()
    teacher = Teacher()
    again = run(tmp_path / "run", teacher, filters, size=30)
    assert again.complete and not again.failures
    assert teacher.asked("response") == 30 - 12 - len(made.failures), "their answers were paid for"


def test_a_command_that_fails_on_every_row_ends_a_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunStopped) as ended:
        run(tmp_path / "run", Teacher(), [{"command": ["./nosuch"]}], size=40)
    assert re.fullmatch(
        r"your own code failed on 20 of the last 20 rows, the last one in filters: command of \d+: "
        r"\./nosuch: cannot be started: No such file or directory — repair it, or raise max_failure_share \(0\.5\); "
        "0 samples are kept; continue with: the same call", str(ended.value)
    )  # fmt: skip
    with Ledger.read(tmp_path / "run") as ledger:
        assert not ledger.db.execute("SELECT count(*) FROM decisions WHERE filter='command'").fetchone()[0]


def test_a_command_that_drops_everything_ends_a_run(tmp_path: Path) -> None:
    with pytest.raises(NothingKept, match="by command"):
        run(tmp_path / "run", Teacher(), [{"command": ["false"]}], size=4)


def started(pids: Path, count: int) -> list[int]:
    """The numbers of as many checks, once they are at work."""
    while len(numbers := pids.read_text("utf-8").split()) < count:
        time.sleep(0.01)
    return [int(number) for number in numbers]


SLEEPS = ["sh", "-c", 'echo $$ >> "$0"; exec sleep 600']


async def test_a_cancellation_ends_once_the_check_is_killed(pids: Path) -> None:
    """The command line ends its process at once then, and whatever is left would stay."""
    check = CommandCheck([*SLEEPS, str(pids)], seconds=600, at_once=2)
    tasks = [asyncio.create_task(check.checked(ROW)) for _ in range(5)]
    numbers = await asyncio.to_thread(started, pids, 2)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    assert not any(map(at_work_of, numbers)) and len(started(pids, 2)) == 2


def test_an_interruption_over_data_ends_once_the_checks_are_killed(pids: Path) -> None:
    checks = CommandCheck([*SLEEPS, str(pids)], seconds=600, at_once=3).checks([ROW] * 40)
    next(checks)
    numbers = started(pids, 3)
    checks.close()
    assert not any(map(at_work_of, numbers)) and len(started(pids, 3)) == 3


# --- bad settings

BAD: dict[str, Any] = {
    "a plain string": {"command": "./check --strict"},
    "a plain string as run": {"command": {"run": "./check --strict"}},
    "alone": "command",
    "nothing": {"command": None},
    "an empty list": {"command": []},
    "an empty program": {"command": [""]},
    "a number": {"command": 5},
    "a number in it": {"command": ["./check", 5]},
    "no run": {"command": {"seconds": 5}},
    "no time": {"command": {"run": ["true"], "seconds": 0}},
    "none at once": {"command": {"run": ["true"], "at_once": 0}},
    "misspelt": {"command": {"run": ["true"], "second": 5}},
    "one text": "command:./check",
}


def test_bad_settings_are_one_line_each(said: Said, tmp_path: Path) -> None:
    lines = dict[str, str]()
    for case, filter_ in BAD.items():
        with pytest.raises(ConfigError) as refused:
            refed_dspy.filter_data(rows(2), [filter_], out=tmp_path / "out")
        lines[case] = str(refused.value)
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "run", Teacher(), [{"command": {"run": ["true"], "keep": 2}}])
    said({**lines, "keep in a run": str(refused.value)})
    assert all("\n" not in line for line in lines.values()) and not (tmp_path / "out").exists()


def test_signals_are_named() -> None:
    for number in (signal.SIGTERM, signal.SIGRTMIN + 3):
        assert f"killed by signal {int(number)} (" in failure(["sh", "-c", f"kill -{int(number)} $$"])


# --- the example that runs code

RUN_CODE = [sys.executable, str(ROOT / "examples/checks/run_code.py")]
STAND_IN = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
cd / && exec unshare --user --map-root-user --net --pid --fork --kill-child -- "$@"
"""
"""In the place of bubblewrap, where that is not installed: it shows what the check makes of the code, no sandbox."""
CODE = {
    "none": "Just words.",
    "another language": "```bash\nexit 1\n```",
    "good": "```python\nprint(1)\n```\nand\n```py\nimport json\n```",
    "fails": "```python\nprint(1)\n```\nand\n```python\nprint(nothing)\n```",
    "has no form": "```python\nprint(\n```",
    "exits": "```python\nimport sys; sys.exit(7)\n```",
    "writes much": "```python\nimport sys; sys.stderr.write('e' * 3_000_000)\n```",
    "takes memory": "```python\nx = bytearray(2_000_000_000)\n```",
    "calls out": "```python\nimport socket; socket.create_connection(('192.0.2.1', 80), 1)\n```",
    "reads keys": "```python\nimport os; assert not [name for name in os.environ if 'KEY' in name]\n```",
    "takes long": "```python\nwhile True: pass\n```",
}


def test_the_example_runs_code_blocks(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("bwrap") is None:
        if subprocess.run(["unshare", "--user", "--net", "true"], check=False).returncode:
            pytest.skip("neither bubblewrap nor unshare works here")
        (tmp_path / "bwrap").write_text(STAND_IN, "utf-8")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check = CommandCheck(RUN_CODE, seconds=60)
    decisions = {case: check.check(DataRow(1, "i", text)) for case, text in CODE.items()}
    said({case: decision.reason or "kept" for case, decision in decisions.items()})


def test_the_example_runs_nothing_without_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert CommandCheck(RUN_CODE).check(DataRow(1, "i", "no code")).kept
    assert failure(RUN_CODE, DataRow(1, "i", CODE["good"])).startswith("exit code 2: [Errno 2] No such file")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: no permission' >&2\nexit 1\n", "utf-8")
    (tmp_path / "bwrap").chmod(0o755)
    told = failure(RUN_CODE, DataRow(1, "i", CODE["good"]))
    assert told == "exit code 2: the sandbox does not work: bwrap: no permission"
