"""The command line as a person meets it: one line for a mistake, the right exit code, no traceback, no key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.records import Failure
from refed_dspy.runs.result import why_short
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.command_line import REFED, refed, refused, synth, teacher_file
from tests.support.said import Said


def test_synth_status_export(said: Said, home: Path, server: SimulatedTeacher) -> None:
    made = synth("--size", 25, "--teacher", teacher_file(home, server))
    assert made.exit_code == 0
    said(made.output)
    facts = json.loads(refed("status", "run", "--json").stdout)
    assert facts["kept"] == 25 and facts["state"] == "done" and facts["usage"]["response_generation"]["calls"] == 25
    said(refed("status", "run").stdout)
    assert refed("export", "run", "--format", "jsonl", "--out", "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == 25
    assert list(rows[0])[:5] == [
        "instruction", "response", "analysis", "implementation_strategy", "improved_response",
    ]  # fmt: skip
    refused(refed("export", "run", "--format", "jsonl", "--out", "out.jsonl"), "out.jsonl: already exists", "--force")
    assert refed("export", "run", "--out", "out.jsonl", "--force").exit_code == 0


def test_one_of_a_kind_is_told_as_one(said: Said, home: Path) -> None:
    words = ["synth", "--references", "builtin", "--size", 1, "--teacher", "simulated", "--run-dir", "one"]
    said(refed(*words, "--estimate").stdout)
    assert refed(*words).exit_code == 0
    said(refed("export", "one", "--out", "one.jsonl").stdout)


def test_a_resume_takes_variables_for_a_teacher_that_is_named_and_tells_of_the_others(
    said: Said, home: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with SimulatedTeacher(latency=0, sigma=0) as old:
        monkeypatch.setenv("REFED_TEACHER__API_BASE", f"{old.base_url}/")
        assert synth("--size", 1, "--teacher", "sim/sim-model").exit_code == 0
        assert refed("resume", "run", "--size", 2).exit_code == 0 and not caplog.messages
        monkeypatch.setenv("REFED_TEACHER__API_BASE", server.base_url)
        assert refed("resume", "run", "--size", 3).exit_code == 0 and server.stats()["requests"] == 0
    (told,) = caplog.messages
    said(told)
    moved = refed("resume", "run", "--size", 4, "--teacher", "sim/sim-model")
    assert moved.exit_code == 0 and server.stats()["requests"] > 0, moved.output


def test_the_same_command_goes_on_and_resume_needs_only_the_folder(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    teacher = teacher_file(home, server)
    synth("--size", 5, "--teacher", teacher)
    paid = server.stats()["requests"]
    assert synth("--size", 5, "--teacher", teacher).exit_code == 0
    assert server.stats()["requests"] == paid
    grown = refed("resume", "run", "--size", 9)
    assert grown.exit_code == 0
    said(grown.output)
    assert server.stats()["repeated"] == 0


def test_a_smaller_size_than_what_is_kept_is_said_and_nothing_is_taken_away(
    said: Said, home: Path, server: SimulatedTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    synth("--size", 5, "--teacher", teacher_file(home, server))
    assert refed("resume", "run", "--size", 5).exit_code == 0 and not caplog.messages
    again = refed("resume", "run", "--size", 3)
    assert again.exit_code == 0
    said(again.stdout)
    said(caplog.messages)


def test_without_a_folder_a_run_gets_one_and_status_lists_it(said: Said, home: Path, server: SimulatedTeacher) -> None:
    said(refed("status").stdout)
    words = ("synth", "--references", "references.jsonl", "--size", 2, "--teacher", teacher_file(home, server))
    made = refed(*words)
    assert made.exit_code == 0, made.output
    folder = made.stdout.splitlines()[-1].removeprefix("folder: ")
    assert folder.startswith("refed-runs/")
    said(refed("status", folder).stdout)
    paid = server.stats()["requests"]
    assert refed(*words).exit_code == 0 and server.stats()["requests"] == paid, "the same command goes on in it"
    heading, line = refed("status").stdout.splitlines()
    assert heading.split() == ["folder", "work", "state", "progress", "dollars", "last", "active"]
    assert line.split()[:6] == [folder, "run", "done", "2", "of", "2"]
    [facts] = json.loads(refed("status", "--json").stdout)
    assert (facts["folder"], facts["state"], facts["count"]) == (folder, "done", 2)


def test_status_is_at_most_ten_lines_and_tokens_are_asked_for(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(faults={"malformed": 0.05, "nousage": 0.2}, duplicates=0.2, seed=2)
    (home / "strict.yaml").write_text("filters: [{rouge: {threshold: 0.2}}]\n")
    teacher = teacher_file(home, server, price="{prompt: 1, completion: 10}")
    synth("--size", 40, "--teacher", teacher, "--config", "strict.yaml", "--max-calls", 80)
    lines = refed("status", "run").stdout.splitlines()
    names = [line.partition(":")[0] for line in lines]
    said(names)
    assert lines == refed("status", "run", "--tokens").stdout.splitlines()[: len(lines)]
    assert not any("tokens" in line for line in lines)


def test_an_estimate_is_a_start_that_stopped(said: Said, home: Path, server: SimulatedTeacher) -> None:
    assert synth("--size", 300, "--teacher", teacher_file(home, server), "--estimate").exit_code == 0
    facts = json.loads(refed("status", "run", "--json").stdout)
    said((facts["state"], facts["reason"]))


def test_a_run_that_ends_short_says_so(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(items=0)
    short = synth("--size", 30, "--teacher", teacher_file(home, server))
    assert short.exit_code == 1
    said(short.stdout)
    said(short.stderr)


def failure(kind: str, stage: str = "response_generation", reason: str = "so") -> Failure:
    return Failure(stage=stage, item="1", kind=kind, reason=reason)


@pytest.mark.parametrize(
    ("failures", "dropped", "words"),
    [
        ([], 0, "none gave anything new in three rounds — add references, or set a smaller size"),
        ([], 7, "filters dropped 7 rows — add references, loosen a filter in a new run, or set a smaller size"),
        (
            [failure("cut"), *[failure("malformed", reason=f"no {n}") for n in range(3)], failure("refused")],
            0,
            "3 malformed in response_generation, the last one: no 2 — add references, or set a smaller size",
        ),
        (
            [failure("no answer", reason="HTTP\n500")],
            2,
            "1 no answer in response_generation, the last one: HTTP 500; filters dropped 2 rows — run it again to "
            "retry unanswered questions, add references, loosen a filter in a new run, or set a smaller size",
        ),
    ],
)
def test_why_a_run_ends_short(failures: list[Failure], dropped: int, words: str) -> None:
    assert why_short(failures, dropped) == words


def write_bad_files(home: Path) -> None:
    (home / "broken.jsonl").write_text('{"instruction": "a", "response": "b"}\n{"instruction": "a", \n')
    (home / "latin.jsonl").write_bytes('{"instruction": "é", "response": "b"}\n'.encode("latin-1"))
    (home / "shapeless.jsonl").write_text('{"ask": "a", "reply": "b"}\n')
    (home / "config.yaml").write_text("size: 3\nteachr: embedded\n")
    (home / "broken.yaml").write_text("size: 3\n  teacher: [\n")
    (home / "down.yaml").write_text("model: sim/x\napi_base: http://127.0.0.1:9/v1\n")
    (home / "nokey.yaml").write_text("model: sim/x\napi_base: http://127.0.0.1:9/v1\napi_key_env: NOT_SET_HERE\n")
    (home / "akey.yaml").write_text(f"model: sim/x\napi_base: http://127.0.0.1:9/v1\napi_key: {KEY}\n")
    (home / "program.json").write_text("{}")


DOWN: list[object] = ["--teacher", "down.yaml"]
BAD_INPUTS: dict[str, tuple[list[object], list[str]]] = {
    "missing file": ([*DOWN, "--references", "none.jsonl"], ["none.jsonl", "no such file"]),
    "broken JSON": ([*DOWN, "--references", "broken.jsonl"], ["broken.jsonl line 2", "broken JSON"]),
    "wrong encoding": ([*DOWN, "--references", "latin.jsonl"], ["latin.jsonl line 1", "UTF-8"]),
    "no usable row": ([*DOWN, "--references", "shapeless.jsonl"], ["no usable row", "ask, reply", "columns"]),
    "unknown config key": (["--config", "config.yaml"], ["config.yaml", "teachr", "did you mean teacher?"]),
    "broken config": (["--config", "broken.yaml"], ["broken.yaml line 2", "not YAML"]),
    "missing key variable": (["--teacher", "nokey.yaml"], ["NOT_SET_HERE", "export it"]),
    "a key in a file": (["--teacher", "akey.yaml"], ["api_key: unknown key", "did you mean api_key_env?"]),
    "endpoint down": (DOWN, ["cannot be reached", "check api_base"]),
    "size 0": ([*DOWN, "--size", 0], ["size", "greater than or equal to 1"]),
    "no teacher": ([], ["no teacher", "--teacher"]),
    "unknown provider": (["--teacher", "nosuch/model"], ["provider is unknown", "api_base"]),
    "not a program": ([*DOWN, "--program", "program.json"], ["program program.json", "it lacks"]),
    "no program": ([*DOWN, "--program", "none.json"], ["program none.json", "no such file"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_before_the_first_call(home: Path, case: str) -> None:
    write_bad_files(home)
    words, expected = BAD_INPUTS[case]
    result = synth(*words)
    refused(result, *expected)
    assert KEY not in result.output
    assert not list(home.glob("run/*.sqlite")) or case == "endpoint down"


def test_a_wrong_key_and_an_unknown_model(
    home: Path, server: SimulatedTeacher, locked_server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-55555555")
    result = synth("--teacher", teacher_file(home, locked_server, api_key_env=KEY_VARIABLE))
    refused(result, "api_key_env")
    assert "sk-wrong-55555555" not in result.output
    refused(synth("--teacher", teacher_file(home, server, model="sim/missing")), "model")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    right = synth("--size", 2, "--teacher", teacher_file(home, locked_server, api_key_env=KEY_VARIABLE))
    assert right.exit_code == 0, right.output
    refed("export", "run", "--out", "out.jsonl")
    for path in (p for p in home.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


def test_a_folder_of_another_run_names_the_difference(home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server)
    synth("--size", 2, "--teacher", teacher)
    refused(synth("--size", 3, "--teacher", teacher, "--seed", 7), "seed was 0, is 7", "another folder with --run-dir")


def test_a_corrupt_ledger(home: Path, server: SimulatedTeacher) -> None:
    (home / "run").mkdir()
    (home / "run" / "ledger.sqlite").write_bytes(b"garbage" * 100)
    refused(synth("--teacher", teacher_file(home, server)), "not a readable ledger")
    for words in (["status", "run"], ["export", "run", "--out", "x"], ["resume", "run"]):
        refused(refed(*words), "not a readable ledger")
    assert server.stats()["requests"] == 0


def test_nothing_there_to_show(home: Path) -> None:
    for words in (["status", "none"], ["export", "none", "--out", "x"], ["resume", "none"]):
        refused(refed(*words), "none: no run here")


def test_a_key_revoked_midway_stops_with_how_to_resume(home: Path, server: SimulatedTeacher) -> None:
    server.control(auth_fails_after=20)
    refused(synth("--size", 40, "--teacher", teacher_file(home, server)), "refed resume run", code=1)
    server.control(auth_fails_after=None)
    assert refed("resume", "run").exit_code == 0


def test_a_stage_that_fails_stops_the_run(home: Path, server: SimulatedTeacher) -> None:
    server.control(fail_stage="improved_response")
    refused(synth("--size", 90, "--teacher", teacher_file(home, server)), "response_improvement failed in", code=1)


def test_preview_shows_every_prompt_and_pays_only_when_asked(home: Path, server: SimulatedTeacher) -> None:
    shown = refed("synth", "--preview", "--references", "references.jsonl")
    assert shown.exit_code == 0 and server.stats()["requests"] == 0
    for text in ("instruction_feedback", "response_improvement: user", "Explain topic 0.", "«a new instruction»"):
        assert text in shown.stdout
    words = "synth", "--preview", "--references", "references.jsonl", "--sample"
    tried = refed(*words, "--teacher", teacher_file(home, server))
    assert '"improved_response"' in tried.stdout and server.stats()["requests"] == 5
    assert not (home / "run").exists()


@pytest.mark.slow
def test_a_disk_that_is_full(said: Said, home: Path, server: SimulatedTeacher) -> None:
    """A file-size limit of the system stands for the full disk: the writes really fail."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "sys.argv = ['refed', *sys.argv[1:]]; from refed_dspy.cli import main; main()"
    )
    words = ["synth", "--references", "references.jsonl", "--run-dir", "run", "--size", "200"]
    command = [sys.executable, "-c", script, *words, "--teacher", str(teacher_file(home, server))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    said(last)
    assert refed("resume", "run").exit_code == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.1, sigma=0.5)
    words = ["synth", "--references", "references.jsonl", "--run-dir", "run", "--size", "150"]
    command = [*REFED, *words, "--teacher", str(teacher_file(home, server))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while server.stats()["answered"] < 30:
                time.sleep(0.02)
            server.control(faults={"hang": 0.3})
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "continue with the same command or refed resume run\n" in stderr and "Traceback" not in stderr
    server.control(faults={}, latency=0, sigma=0)
    done = subprocess.run([*REFED, "resume", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "150 of 150 samples" in done.stdout


def test_help_is_quick_to_read() -> None:
    shown = refed("--help").stdout
    for command in ("synth", "resume", "status", "export", "teacher"):
        assert command in shown
    assert refed("synth", "--nonsense").exit_code == 2


def test_an_export_goes_to_stdout_and_replaces_no_pipe(home: Path, server: SimulatedTeacher) -> None:
    synth("--size", 3, "--teacher", teacher_file(home, server))
    assert len([json.loads(line) for line in refed("export", "run", "--out", "-").stdout.splitlines()]) == 3
    os.mkfifo("pipe")
    (home / "rows.jsonl").write_text("")
    Path("link").symlink_to("rows.jsonl")
    for out in ("pipe", "/dev/null"):
        refused(refed("export", "run", "--out", out, "--force"), "it is a pipe, a device or a folder", code=2)
    assert Path("pipe").is_fifo() and Path("/dev/null").is_char_device()
    refused(refed("export", "run", "--out", "rows.parquet"), "add --format parquet")
    assert refed("export", "run", "--format", "parquet").exit_code == 0 and Path("samples.parquet").is_file()
