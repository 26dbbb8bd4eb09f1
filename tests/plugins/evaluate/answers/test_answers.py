"""A model answers prompts: what it is asked, what counts as its answer, what is paid, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request, ServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import ConfigError, ExportError, InputError, NoAnswer, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.evaluate.answers.formats import style_of
from refed_dspy.plugins.evaluate.answers.result import Answers
from tests.support.compiling import config, requests
from tests.support.looks import small
from tests.support.recording_endpoint import listening
from tests.support.said import Said
from tests.support.scripted_engine import Answer, Writer, fake_lm, response


def prompts(count: int = 6) -> list[dict[str, Any]]:
    """Prompts as Arena-Hard has them."""
    return [{"uid": f"u{n}", "category": "hard_prompt", "prompt": f"  Name fish {n}.\n"} for n in range(1, count + 1)]


def answered(folder: Path, teacher: Any, rows: Any = None, **settings: Any) -> Answers:
    return refed_dspy.answer_prompts(prompts() if rows is None else rows, teacher=teacher, out=folder, **settings)


class Answering(Writer):
    """Answers with plain text: what `say` makes of the prompt."""

    def __init__(self, say: Callable[[str], Answer] = lambda text: f"Re: {text.strip()}") -> None:
        super().__init__()
        self.on_request = lambda request: say(asked(request))


def asked(request: Request) -> str:
    """The text of a request's only message."""
    (message,) = request.messages
    (part,) = message.parts
    return str(getattr(part, "text", ""))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


PROMPT = " Name a fish.\n"
SYSTEM = "Be kind."
NOT_ASKED = "not asked"


def test_the_model_sees_the_prompt_to_the_letter_and_nothing_else(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": " Cod.\n"}, "finish_reason": "stop"}]}
    with listening(lambda _: (200, {"id": "x", "model": "m", **body})) as endpoint:
        teacher = {"model": "openai/gpt-4o", "api_base": endpoint.base_url, "temperature": 0.3, "max_tokens": 99}
        made = answered(tmp_path, teacher, [{"prompt": PROMPT}, {"prompt": "And?", "system": SYSTEM}])
    by_text = {sent["messages"][-1]["content"]: sent for sent in endpoint.bodies}
    plain, under = by_text[PROMPT], by_text["And?"]
    assert plain["messages"] == [{"role": "user", "content": PROMPT}]
    assert under["messages"][0] == {"role": "system", "content": SYSTEM} and len(under["messages"]) == 2
    assert plain["temperature"] == 0.3 and 99 in plain.values()
    assert not {"response_format", "tools", "stop"} & plain.keys()
    assert [row["response"] for row in made.kept()] == [" Cod.\n"] * 2, "as it was written"


def test_rows_files_and_a_second_start(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = answered(tmp_path, config(server), system=SYSTEM)
    rows = read(tmp_path / "answers.jsonl")
    assert rows == list(made) and [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0]) == ["row", "instruction", "system", "response", "generator", "cut"]
    assert [row["instruction"] for row in rows] == [row["prompt"] for row in prompts()]
    assert {(row["system"], row["generator"], row["cut"]) for row in rows} == {(SYSTEM, "sim", False)}
    assert len({row["response"] for row in rows}) == 6 and all(row["response"] for row in rows)
    assert not made.problem and made.state == "done"
    said(made.lines())
    assert not (tmp_path / "unanswered.jsonl").exists()
    small(made)
    assert [row.instruction for row in load_dataset(tmp_path).rows] == [row["instruction"].strip() for row in rows]
    before = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").unlink()
    again = answered(tmp_path, config(server), system=SYSTEM, format="alpaca_eval", generator="mine")
    assert requests(server) == 6 and again.used.calls == 6
    assert (tmp_path / "answers.jsonl").read_bytes() == before.replace(b'"sim"', b'"mine"')
    assert [row["output"] for row in json.loads(again.file.read_bytes())] == [row["response"] for row in rows]


def test_equal_prompts_are_one_question(tmp_path: Path) -> None:
    writer = Answering()
    rows = [{"prompt": text} for text in ("Hi", "Ho", "Hi")]
    made = answered(tmp_path, fake_lm(writer), rows)
    assert sorted(map(asked, writer.requests)) == ["Hi", "Ho"]
    assert [row["response"] for row in made.kept()] == [f"Re: {row['prompt']}" for row in rows]
    assert [*answered(tmp_path, fake_lm(writer), rows)] == [*made] and len(writer.requests) == 2


def test_an_answer_that_was_cut_an_empty_one_and_reasoning(said: Said, tmp_path: Path) -> None:
    half, as_json, thought = "Half of", '{"response": "Cod."}', "Hm, {fish}."
    written: dict[str, Any] = {
        "cut": response(half, "length"),
        "empty": response("", "stop"),
        "thinks": f"<think>\n{thought}\n</think>\n\n Cod.",
        "open": response("<think>\nHm, a fish, or", "length"),
        "json": as_json,
    }
    writer = Answering(written.__getitem__)
    made = answered(tmp_path, fake_lm(writer), [{"prompt": text} for text in written])
    assert [row["response"].strip(" ") for row in made.kept()] == [half, "", "Cod.", "", as_json]
    assert [row["cut"] for row in made.kept()] == [True, False, False, True, False]
    assert len(writer.requests) == 5 and not made.problem, "none is asked for again"
    said(made.lines())
    with Ledger.read(tmp_path) as ledger:
        thoughts = {text for (text,) in ledger.db.execute("SELECT text FROM reasoning")}
    assert thoughts == {thought}


def test_a_prompt_without_an_answer_is_listed_and_asked_again_where_that_may_help(said: Said, tmp_path: Path) -> None:
    refuses = {2: response("", "content_filter"), 4: ServerError("busy", status=503)}

    def say(text: str) -> Any:
        return refuses.get(int(text.strip()[-2]), f"Re: {text.strip()}")

    writer = Answering(say)
    made = answered(tmp_path, fake_lm(writer))
    assert [row["row"] for row in made] == [1, 3, 5, 6]
    missing = read(tmp_path / "unanswered.jsonl")
    assert [(row["row"], row["kind"]) for row in missing] == [(2, "refused"), (4, NoAnswer.kind)]
    said(missing[0]["reason"])
    said(made.lines())
    refuses.clear()
    before = len(writer.requests)
    again = answered(tmp_path, fake_lm(writer))
    assert [row["row"] for row in again] == [1, 3, 4, 5, 6] and len(writer.requests) == before + 1
    said([made.problem, again.problem])


def test_at_a_cap_the_answers_so_far_are_written_and_the_rest_is_listed(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = answered(tmp_path, config(server), prompts(20), max_calls=7)
    assert (made.stopped, len(made), requests(server)) == ("max_calls", 7, 7) and not made.problem
    missing = read(tmp_path / "unanswered.jsonl")
    assert len(missing) == 13 and {row["kind"] for row in missing} == {NOT_ASKED}
    whole = answered(tmp_path, config(server), prompts(20), max_calls=20)
    assert [row for row in whole if row["row"] in {row["row"] for row in made}] == [*made]
    assert not (tmp_path / "unanswered.jsonl").exists()


def test_interrupted_it_writes_the_answers_so_far(tmp_path: Path) -> None:
    asked: list[str] = []

    def say(text: str) -> str:
        asked.append(text)
        if len(asked) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        if len(asked) > 4:
            time.sleep(0.02)  # what comes after it is slower than the stop
        return "Yes."

    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path, fake_lm(Answering(say)), prompts(200))
    kept, missing = read(tmp_path / "answers.jsonl"), read(tmp_path / "unanswered.jsonl")
    assert 3 <= len(kept) < 200 and len(kept) + len(missing) == 200


def test_a_model_that_fails_ends_it_and_what_was_answered_is_written(tmp_path: Path) -> None:
    writer = Answering(lambda text: "Yes." if text.strip() == "Name fish 1." else response("", "content_filter"))
    with pytest.raises(RunStopped, match="declined by the model"):
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
    for teacher, settings in (
        (config(server), {"rows": prompts(7)}),
        (config(server), {"system": SYSTEM}),
        (config(server, temperature=0.5), {}),
    ):
        with pytest.raises(RunDirError) as refused:
            answered(tmp_path / "a", teacher, **settings)
        said(str(refused.value))
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


def test_the_request_is_the_same_for_a_lm_of_the_caller_s_own(tmp_path: Path) -> None:
    writer = Answering()
    answered(tmp_path, fake_lm(writer, temperature=0.1, max_tokens=50), [{"prompt": " Hi "}], system=SYSTEM)
    (request,) = writer.requests
    assert isinstance(request, Request) and asked(request) == " Hi "
    assert str(request.system) == SYSTEM
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


# --- what the code of benchmarks reads: AlpacaEval's, Arena-Hard's and IFEval's files


TEXT = "# Fish\n- **cod**\n\n```\n# no\n```\n"


def test_alpaca_eval(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": "Name a fish. ", "dataset": "koala", "output": "old"}, {"instruction": "Name a cat."}]
    made = answered(tmp_path, fake_lm(Answering(), "openai/org/My-Model"), rows, format="alpaca_eval")
    assert made.file == tmp_path / "model_outputs.json"
    said(json.loads(made.file.read_bytes()))


def test_arena_hard(said: Said, tmp_path: Path) -> None:
    writer = Answering(lambda _: TEXT)
    made = answered(tmp_path, fake_lm(writer), prompts(2), format="arena_hard", generator="mine", system="Be kind.")
    assert made.file == tmp_path / "mine.jsonl"
    first, second = read(made.file)
    assert list(first) == ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]
    assert (first["uid"], first["model"], first["metadata"]) == ("u1", "mine", style_of(TEXT))
    assert first["metadata"]["header_count"]["h1"] == first["metadata"]["bold_count"]["**"] == 1
    said(first["messages"])
    assert first["ans_id"] != second["ans_id"]
    before = made.file.read_bytes()
    again = answered(tmp_path, fake_lm(writer), prompts(2), format="arena_hard", generator="mine", system="Be kind.")
    assert again.file.read_bytes() == before, "ids and times are those of the answers"


def test_ifeval(said: Said, tmp_path: Path) -> None:
    rows = [{"key": 1000, "prompt": "Name a fish. ", "instruction_id_list": ["a:b"], "kwargs": [{}]}]
    made = answered(tmp_path, fake_lm(Answering()), rows, format="ifeval")
    assert made.file == tmp_path / "responses.jsonl"
    said(read(made.file))


def test_what_cannot_be_written_is_refused_before_anything_is_asked(said: Said, tmp_path: Path) -> None:
    writer = Answering()
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), [*prompts(1), {"prompt": "Hi"}], format="arena_hard")
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), format="arena_hard", generator="answers")
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), generator="a/b")
    for name in ("..", "", "a\nb", "x" * 101):
        with pytest.raises(ConfigError):
            answered(tmp_path / "a", fake_lm(writer), generator=name)
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), format="mt_bench")
    assert not writer.requests and not (tmp_path / "a").exists()
    answered(tmp_path / "b", fake_lm(writer), generator="answers", format="alpaca_eval")  # here no file is named so


@pytest.mark.parametrize(
    ("model", "name"),
    [("openai/gpt-4.1", "gpt-4.1"), ("ollama/qwen2.5:7b", "qwen2.5-7b"), ("x/.hidden", "-hidden"), ("x/a b/", "a-b")],
)
def test_a_generator_is_the_last_part_of_a_model_s_name(tmp_path: Path, model: str, name: str) -> None:
    made = answered(tmp_path, fake_lm(Answering(), model), prompts(1), format="arena_hard")
    assert made.file.name == f"{name}.jsonl"
