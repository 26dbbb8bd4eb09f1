"""A model answers prompts: what it is asked, what counts as its answer, what is paid, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dspy.lm15 import Request, ServerError

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import ExportError, InputError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from tests.runs.answers.helpers import Answering, answered, asked, prompts, read
from tests.support.compiling import config
from tests.support.looks import small
from tests.support.recording_endpoint import listening
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm, response


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


def test_the_model_sees_the_prompt_to_the_letter_and_nothing_else(said: Said, tmp_path: Path) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": " Cod.\n"}, "finish_reason": "stop"}]}
    with listening(lambda _: (200, {"id": "x", "model": "m", **body})) as endpoint:
        teacher = {"model": "openai/gpt-4o", "api_base": endpoint.base_url, "temperature": 0.3, "max_tokens": 99}
        made = answered(tmp_path, teacher, [{"prompt": " Name a fish.\n"}, {"prompt": "And?", "system": "Be brief."}])
    by_text = {sent["messages"][-1]["content"]: sent for sent in endpoint.bodies}
    plain, under = by_text[" Name a fish.\n"], by_text["And?"]
    said(plain["messages"])
    assert len(under["messages"]) == 2
    said(under["messages"][0]["content"])
    assert plain["temperature"] == 0.3 and 99 in plain.values()
    assert not {"response_format", "tools", "stop"} & plain.keys()
    assert [row["response"] for row in made.kept()] == [" Cod.\n"] * 2, "as it was written"


def test_rows_files_and_a_second_start(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.01, sigma=1.0)
    made = answered(tmp_path, config(server), system="Be kind.")
    rows = read(tmp_path / "answers.jsonl")
    assert rows == list(made) and [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0]) == ["row", "instruction", "system", "response", "generator", "cut"]
    assert [row["instruction"] for row in rows] == [row["prompt"] for row in prompts()]
    said({(row["system"], row["generator"], row["cut"]) for row in rows})
    assert len({row["response"] for row in rows}) == 6 and all(row["response"] for row in rows)
    assert made.lines()[0].endswith(", 6 calls")
    said(made.lines()[0])
    assert not made.problem and made.state == "done"
    said(made.lines()[1:])
    assert not (tmp_path / "unanswered.jsonl").exists()
    said(small(made))
    before = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").unlink()
    again = answered(tmp_path, config(server), system="Be kind.", format="alpaca_eval", generator="mine")
    assert requests(server) == 6 and again.used.calls == 6
    assert (tmp_path / "answers.jsonl").read_bytes() == before.replace(b'"sim"', b'"mine"')
    assert [row["output"] for row in json.loads(again.file.read_bytes())] == [row["response"] for row in rows]


def test_the_answers_are_a_data_set(server: SimulatedTeacher, tmp_path: Path) -> None:
    answered(tmp_path, config(server))
    rows = load_dataset(tmp_path).rows
    assert [row.instruction for row in rows] == [f"Name fish {n}." for n in range(1, 7)]


def test_equal_prompts_are_one_question(said: Said, tmp_path: Path) -> None:
    writer = Answering()
    rows = [{"prompt": text} for text in ("Hi", "Ho", "Hi")]
    made = answered(tmp_path, fake_lm(writer), rows)
    assert sorted(map(asked, writer.requests)) == ["Hi", "Ho"]
    said([row["response"] for row in made.kept()])
    assert [*answered(tmp_path, fake_lm(writer), rows)] == [*made] and len(writer.requests) == 2


def test_an_answer_that_was_cut_an_empty_one_and_reasoning(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "cut": response("Half of", "length"),
        "empty": response("", "stop"),
        "thinks": "<think>\nHm, {fish}.\n</think>\n\n Cod.",
        "open": response("<think>\nHm, a fish, or", "length"),
        "json": '{"response": "Cod."}',
    }
    writer = Answering(said.__getitem__)
    made = answered(tmp_path, fake_lm(writer), [{"prompt": text} for text in said])
    assert [row["response"].strip(" ") for row in made.kept()] == ["Half of", "", "Cod.", "", '{"response": "Cod."}']
    assert [row["cut"] for row in made.kept()] == [True, False, False, True, False]
    assert "of the answers: 2 cut at max_tokens, 2 empty" in made.lines() and not made.problem
    assert len(writer.requests) == 5, "none is asked for again"
    with Ledger.read(tmp_path) as ledger:
        thoughts = {text for (text,) in ledger.db.execute("SELECT text FROM reasoning")}
    assert thoughts == {"Hm, {fish}."}


def test_a_cut_answer_of_an_endpoint_counts_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"cut": 1.0})
    made = answered(tmp_path, config(server))
    assert len(made) == 6 and all(row["cut"] and row["response"] for row in made)
    server.control(faults={})
    assert [*answered(tmp_path, config(server))] == [*made] and requests(server) == 6


def test_a_prompt_without_an_answer_is_listed_and_asked_again_where_that_may_help(said: Said, tmp_path: Path) -> None:
    refuses = {2: response("", "content_filter"), 4: ServerError("busy", status=503)}

    def say(text: str) -> Any:
        return refuses.get(int(text.strip()[-2]), f"Re: {text.strip()}")

    writer = Answering(say)
    made = answered(tmp_path, fake_lm(writer))
    assert [row["row"] for row in made] == [1, 3, 5, 6]
    missing = read(tmp_path / "unanswered.jsonl")
    said([(row["row"], row["instruction"]) for row in missing])
    assert missing[0]["kind"] == "refused" and "declined" in missing[0]["reason"]
    said(made.problem)
    said(made.lines())
    refuses.clear()
    before = len(writer.requests)
    again = answered(tmp_path, fake_lm(writer))
    assert [row["row"] for row in again] == [1, 3, 4, 5, 6] and len(writer.requests) == before + 1
    assert not again.problem.endswith("may help") and made.problem.endswith("asks again where that may help")


def test_a_cap_ends_it_and_a_larger_one_goes_on(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = answered(tmp_path, config(server), prompts(20), max_calls=7)
    assert (made.stopped, len(made), requests(server)) == ("max_calls", 7, 7) and not made.problem
    missing = read(tmp_path / "unanswered.jsonl")
    assert len(missing) == 13
    said({row["kind"] for row in missing})
    assert [*answered(tmp_path, config(server), prompts(20))] == [*made] and requests(server) == 7, "caps last"
    whole = answered(tmp_path, config(server), prompts(20), max_calls=20)
    assert (whole.stopped, len(whole), requests(server)) == ("", 20, 20) and server.stats()["repeated"] == 0
    assert [row for row in whole if row["row"] in {row["row"] for row in made}] == [*made]
    assert not (tmp_path / "unanswered.jsonl").exists()


def test_a_model_that_fails_ends_it_and_what_was_answered_is_written(said: Said, tmp_path: Path) -> None:
    writer = Answering(lambda text: "Yes." if text.strip() == "Name fish 1." else response("", "content_filter"))
    with said.by(RunStopped):
        answered(tmp_path, fake_lm(writer), prompts(60))
    assert [row["response"] for row in read(tmp_path / "answers.jsonl")] == ["Yes."]
    assert len(read(tmp_path / "unanswered.jsonl")) == 59


def test_batches(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = answered(tmp_path, config(server, mode="batch", batch={"quiet": 0.05, "poll": 0.05}), prompts(30))
    assert len(made) == 30 and server.stats()["batches"] == 1


def test_other_prompts_another_model_and_other_work_are_refused(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    answered(tmp_path / "a", config(server))
    for changed, teacher, settings in (
        ("prompts was", config(server), {"rows": prompts(7)}),
        ("system was , is Be kind.", config(server), {"system": "Be kind."}),
        ("teacher.temperature was 1.0, is 0.5", config(server, temperature=0.5), {}),
    ):
        with said.by(RunDirError) as refused:
            answered(tmp_path / "a", teacher, **settings)
        assert changed in str(refused.value)
    with said.by(ExportError):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "answers.jsonl").write_text("precious")
        answered(tmp_path / "b", config(server))
    file = tmp_path / "c" / "answers.jsonl"
    file.parent.mkdir()
    file.write_text('{"instruction": "Hi"}\n')
    with said.by(InputError):
        answered(tmp_path / "c", config(server), file)
    assert requests(server) == 6


def test_the_request_is_the_same_for_a_lm_of_the_caller_s_own(said: Said, tmp_path: Path) -> None:
    writer = Answering()
    answered(tmp_path, fake_lm(writer, temperature=0.1, max_tokens=50), [{"prompt": " Hi "}], system="Be kind.")
    (request,) = writer.requests
    assert isinstance(request, Request) and asked(request) == " Hi "
    said(str(request.system))
    assert (request.config.temperature, request.config.max_tokens) == (0.1, 50)
    assert request.config.response_format is None


def test_a_file_that_cannot_be_written_loses_no_answer(said: Said, tmp_path: Path) -> None:
    writer = Answering()
    answered(tmp_path, fake_lm(writer))
    (tmp_path / "answers.jsonl").unlink()
    (tmp_path / "answers.jsonl").mkdir()
    with said.by(RunStopped):
        answered(tmp_path, fake_lm(writer))
    (tmp_path / "answers.jsonl").rmdir()
    assert len(answered(tmp_path, fake_lm(writer))) == 6 == len(writer.requests)
