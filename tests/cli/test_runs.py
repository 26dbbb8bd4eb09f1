"""The command line as a person meets it: one line for a mistake, the right exit code, no traceback, no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.records import Failure
from refed_dspy.runs.result import why_short
from tests.conftest import KEY
from tests.support.command_line import refed, refusal, synth, teacher_file
from tests.support.said import Said


def test_synth_status_export(said: Said, home: Path, server: SimulatedTeacher) -> None:
    made = synth("--size", 12, "--teacher", teacher_file(home, server))
    assert made.exit_code == 0
    said(made.stdout)
    facts = json.loads(refed("status", "run", "--json").stdout)
    assert facts["kept"] == 12 and facts["state"] == "done" and facts["usage"]["response_generation"]["calls"] == 12
    said(refed("status", "run").stdout)
    assert refed("export", "run", "--format", "jsonl", "--out", "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    columns = ["instruction", "response", "analysis", "implementation_strategy", "improved_response"]
    assert len(rows) == 12 and list(rows[0])[:5] == columns
    said(refusal(refed("export", "run", "--format", "jsonl", "--out", "out.jsonl")))
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


def test_a_resume_needs_only_the_folder_and_a_smaller_size_takes_nothing_away(
    said: Said, home: Path, server: SimulatedTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    synth("--size", 5, "--teacher", teacher_file(home, server))
    grown = refed("resume", "run", "--size", 7)
    assert grown.exit_code == 0 and server.stats()["repeated"] == 0 and not caplog.messages
    again = refed("resume", "run", "--size", 3)
    assert again.exit_code == 0
    said((grown.stdout, again.stdout, caplog.messages))


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


def failure(kind: str, reason: str = "so") -> Failure:
    return Failure(stage="response_generation", item="1", kind=kind, reason=reason)


def test_why_a_run_ends_short(said: Said) -> None:
    malformed = [failure("malformed", f"no {n}") for n in range(3)]
    said([
        why_short([], 0), why_short([], 7), why_short([failure("cut"), *malformed, failure("refused")], 0),
        why_short([failure("no answer", "HTTP\n500")], 2),
    ])  # fmt: skip


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
BAD_INPUTS: dict[str, list[object]] = {
    "missing file": [*DOWN, "--references", "none.jsonl"],
    "broken JSON": [*DOWN, "--references", "broken.jsonl"],
    "wrong encoding": [*DOWN, "--references", "latin.jsonl"],
    "no usable row": [*DOWN, "--references", "shapeless.jsonl"],
    "unknown config key": ["--config", "config.yaml"],
    "broken config": ["--config", "broken.yaml"],
    "missing key variable": ["--teacher", "nokey.yaml"],
    "a key in a file": ["--teacher", "akey.yaml"],
    "size 0": [*DOWN, "--size", 0],
    "no teacher": [],
    "unknown provider": ["--teacher", "nosuch/model"],
    "not a program": [*DOWN, "--program", "program.json"],
    "no program": [*DOWN, "--program", "none.json"],
}


def test_bad_input_is_one_line_before_the_first_call(said: Said, home: Path) -> None:
    write_bad_files(home)
    lines = {case: refusal(synth(*words)) for case, words in BAD_INPUTS.items()}
    said(lines)
    assert KEY not in str(lines) and not list(home.glob("run/*.sqlite"))
    said(refusal(synth(*DOWN)))


def test_an_unknown_model(said: Said, home: Path, server: SimulatedTeacher) -> None:
    said(refusal(synth("--teacher", teacher_file(home, server, model="sim/missing"))))


def test_a_corrupt_ledger(said: Said, home: Path, server: SimulatedTeacher) -> None:
    (home / "run").mkdir()
    (home / "run" / "ledger.sqlite").write_bytes(b"garbage" * 100)
    for words in (["status", "run"], ["export", "run", "--out", "x"], ["resume", "run"]):
        said(refusal(refed(*words)))
    assert server.stats()["requests"] == 0


def test_nothing_there_to_show(said: Said, home: Path) -> None:
    for words in (["status", "none"], ["export", "none", "--out", "x"], ["resume", "none"]):
        said(refusal(refed(*words)))


def test_a_key_revoked_midway_stops_with_how_to_resume(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(auth_fails_after=20)
    said(refusal(synth("--size", 40, "--teacher", teacher_file(home, server)), 1))
    server.control(auth_fails_after=None)
    assert refed("resume", "run").exit_code == 0


def test_a_stage_that_fails_stops_the_run(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(fail_stage="improved_response")
    said(refusal(synth("--size", 90, "--teacher", teacher_file(home, server)), 1))


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


def test_an_export_goes_to_stdout_and_replaces_no_pipe(said: Said, run: Path) -> None:
    assert len([json.loads(line) for line in refed("export", "run", "--out", "-").stdout.splitlines()]) == 5
    os.mkfifo("pipe")
    Path("rows.jsonl").write_text("")
    Path("link").symlink_to("rows.jsonl")
    for out in ("pipe", "/dev/null"):
        said(refusal(refed("export", "run", "--out", out, "--force")))
    assert Path("pipe").is_fifo() and Path("/dev/null").is_char_device()
    said(refusal(refed("export", "run", "--out", "rows.parquet")))
    assert refed("export", "run", "--format", "parquet").exit_code == 0 and Path("samples.parquet").is_file()
