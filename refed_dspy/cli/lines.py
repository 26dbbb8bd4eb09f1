"""What people read of a run, of other paid work and of batches, as lines of text."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from refed_dspy.errors import as_options, one_line
from refed_dspy.ledger.account import spent_text
from refed_dspy.ledger.summary import span, time_left
from refed_dspy.records import money
from refed_dspy.text import counted, table_lines


def state_lines(status: Mapping[str, Any], made: str) -> list[str]:
    """The state first, with what is `made`, dollars and the time that is left; below it the reason, if there is one."""
    first = f"{status['state']}{_ago(status)}: {made}, {spent_text(status)}"
    if (seconds := status.get("seconds_left")) is not None:
        first += f", {time_left(seconds)}"
    return [first, *([f"reason: {as_options(one_line(status['reason'], 600))}"] if status["reason"] else [])]


def _ago(status: Mapping[str, Any]) -> str:
    """How long ago the work was last active, where that is over a minute."""
    if status["last_active"] is None:
        return ""
    last = datetime.fromisoformat(status["last_active"])
    seconds = time.time() - last.timestamp()
    if seconds < 60:
        return ""
    when = f"{span(seconds)} ago" if seconds < 36 * 3600 else f"on {last.astimezone():%Y-%m-%d}"
    return f" (last active {when})" if status["state"] == "running" else f" {when}"


def run_lines(status: Mapping[str, Any]) -> list[str]:
    """How a run or a comparison stands (`runs.result.full_status`)."""
    made = "instructions compared" if status["work"] == "comparison" else "samples"
    instructions, left_out = status["instructions"], sum(status["left_out"].values())
    references = f"references: {status['opened']} of {status['references']} used"
    new = f"instructions: {instructions['new']} new, {instructions['duplicates']} duplicate"
    return [
        *state_lines(status, f"{status['kept']} of {status['size']} {made}"),
        *_cost_lines(status),
        references + (f", {left_out} left out{_counted(status['left_out'])}" if left_out else ""),
        new + (f", {instructions['surplus']} surplus" if instructions["surplus"] else ""),
        *_filters_line(status["filters"]),
        *_calls_lines(status),
        *_cluster_line(status.get("cluster")),
    ]


def _cluster_line(cluster: Mapping[str, Any] | None) -> list[str]:
    """What a run on a cluster has at work, or had at last."""
    if cluster is None:
        return []
    shards = cluster["shards"]
    phrases = [
        f"{counted(cluster['workers'], 'worker')} on {counted(cluster['nodes'], 'node')}",
        f"{cluster['calls_a_second']:,.0f} calls/s",
        f"{shards['done']} of {counted(shards['all'], 'shard')} done",
        f"{shards['dry']} dry" if shards["dry"] else "",
        f"{counted(cluster['deaths'], 'worker')} died" if cluster["deaths"] else "",
        f"no word from {', '.join(cluster['slow'])}" if cluster["slow"] else "",
    ]
    return [f"cluster: {', '.join(filter(None, phrases))}"]


def token_lines(status: Mapping[str, Any]) -> list[str]:
    """Calls, tokens and dollars by stage, by model where there are several, and tokens a sample."""
    lines = [usage_line(stage, usage) for stage, usage in status["usage"].items()]
    models = status.get("models", ())
    if len(models) > 1:
        lines += [usage_line(f"{usage['model']} at {usage['endpoint']}", usage) for usage in models]
    if (tokens := status.get("tokens_a_sample")) is not None:
        lines.append(f"per sample: {_tokens(tokens['all'])}")
        lines += [f"  {stage}: {_tokens(share)}" for stage, share in tokens["stages"].items()]
    return lines


def usage_line(stage: str, usage: Mapping[str, Any]) -> str:
    """What one stage's calls took (`ledger.summary.usage_by_stage`)."""
    unknown = f", {usage['unknown']} of unknown usage" if usage["unknown"] else ""
    reasoning = f" ({usage['reasoning_tokens']} reasoning)" if usage["reasoning_tokens"] else ""
    return (
        f"{stage}: {counted(usage['calls'], 'call')}, {usage['prompt_tokens']} tokens read "
        f"({usage['cached_tokens']} cached), {usage['completion_tokens']} written{reasoning}{unknown}, "
        f"{money(usage['cost'], usage['unpriced'])}"
    )


def _tokens(tokens: Mapping[str, float]) -> str:
    cached = f" ({tokens['cached']:,.0f} cached)" if tokens["cached"] else ""
    return f"{tokens['prompt']:,.0f} tokens read{cached}, {tokens['completion']:,.0f} written"


def _filters_line(filters: Sequence[Mapping[str, Any]]) -> list[str]:
    """What filters dropped, and what they noted of kept rows, in one line; none where there is neither."""
    phrases = [f"{each['dropped']} dropped by {each['filter']}{_counted(each['reasons'])}" for each in filters]
    told = [phrase for each, phrase in zip(filters, phrases, strict=True) if each["dropped"]]
    remarks = Counter[str]()
    for each in filters:
        remarks.update(each["remarks"])
    told += [f"{count} {one_line(remark, 80)}" for remark, count in remarks.most_common(3)]
    return [f"filters: {', '.join(told)}"] if told else []


def _counted(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts, in brackets."""
    top = sorted(reasons.items(), key=lambda item: -item[1])
    shown = [f"{count} {one_line(reason, 80)}" for reason, count in top[:3]]
    return f" ({', '.join([*shown, *(['…'] if len(top) > 3 else [])])})"


def _calls_lines(status: Mapping[str, Any]) -> list[str]:
    """How many calls there were and what failed, and the calls that are counted at their worst case."""
    used = status["used"]
    failed = {f"{each['kind']} in {each['stage']}": each["count"] for each in status["failures"]}
    line = f"calls: {used['calls']:,}"
    if failed:
        line += f", {counted(sum(failed.values()), 'question')} failed{_counted(failed)}"
    if limited := used["rate_limited"]:
        line += f", {limited:,} refused by the rate limit and asked again"
    lines = [line] if status["usage"] else []
    if status["state"] == "running" and (since := status["limited_since"]) is not None:
        lines.append(f"waiting: for the rate limit, since {max(0.0, time.time() - since):.0f} s")
    in_flight, at_most, unknown, reserved = map(used.get, ("in_flight", "in_flight_cost", "unknown", "reserved"))
    if in_flight and (status["state"] == "running" or status.get("batches")):
        lines.append(f"in flight: {counted(in_flight, 'call')}" + (f", up to {money(at_most)} more" if at_most else ""))
    else:
        unknown, reserved = unknown + in_flight, reserved + at_most
    if unknown:
        at_worst = f", counted at their worst case, {money(reserved)}" if reserved else ""
        lines.append(f"unknown usage: {counted(unknown, 'call')} with no token counts that can be believed{at_worst}")
    return lines


def _cost_lines(status: Mapping[str, Any]) -> list[str]:
    """What a sample has cost, and what the whole run will cost."""
    phrases = [f"{money(each)} per sample"] if (each := status["cost_per_sample"]) else []
    if (estimate := status["estimate"]) is not None and estimate["cost"] is not None:
        bounds = f"{money(estimate['low'])} to {money(estimate['high'])}"
        phrases.append(f"about {money(estimate['cost'])} for all {estimate['size']} ({bounds})")
    if phrases and status["price_source"]:
        phrases[-1] += f" (prices of {status['price_source']})"
    return [f"dollars: {', '.join(phrases)}"] if phrases else []


_ASKED = {"answers": ("prompts", "model"), "evaluation": ("comparisons", "judge")}
"""Kind of work → what is asked about, and who is asked."""


def work_lines(status: Mapping[str, Any]) -> list[str]:
    """How work over a data set stands (`ledger.account.status_of`)."""
    if status["work"] == "recording":  # of how many rows, only its code knows
        return [*state_lines(status, "recording"), *_calls_lines(status)]
    asked, rows = status["asked"], status["rows"]
    of = f" of {rows}" if rows is not None and rows >= asked else ""
    noun, model = _ASKED.get(status["work"], ("rows", "model"))
    return [
        *state_lines(status, f"{status['work']}, {asked}{of} {noun} sent to the {model}"),
        *_calls_lines(status),
    ]


def filtering_lines(status: Mapping[str, Any]) -> list[str]:
    """How a filtering stands (`runs.filter.result.filtering_status`)."""
    made = f"{status['kept']} of {status['rows']} rows kept"
    made += f", {status['undecided']} undecided" if status["undecided"] else ""
    return [
        *state_lines(status, made),
        *_filters_line(status["filters"]),
        *_calls_lines(status),
    ]


def compile_lines(facts: Mapping[str, Any]) -> list[str]:
    """How a compile stands (`optimizers.result.compile_status`)."""
    best = "" if facts["best"] is None else f", best {facts['best']:.2f} (uncompiled {facts['uncompiled']:.2f})"
    made = f"compile by {facts['optimizer']}, {counted(facts['candidates'], 'candidate')}"
    made += f", {counted(facts['evaluations'], 'evaluation')}"
    proof = {None: "none yet", True: "proved better", False: "not proved better"}[facts["proved"]]
    proof = "nothing to prove" if facts["unchanged"] else proof
    lines = [*state_lines(facts, made + best), f"proof: {proof}", *_calls_lines(facts)]
    if abstained := facts["abstained"]:
        lines.append(f"not judged: {abstained} more evaluations; they count neither for nor against a candidate")
    return lines


def listing_lines(works: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each work (`ledger.summary.works_below`), and a heading."""
    rows = [("folder", "work", "state", "progress", "dollars", "last active")]
    for each in works:
        count = f"{each['count']} of {each['size']}" if each["size"] is not None else str(each["count"])
        count += f" {each['unit']}" if each["unit"] else ""
        state = (one_line(each["folder"], 80), one_line(each["work"], 20), one_line(each["state"], 20))
        rows.append((*state, count, spent_text(each), _when(each["last_active"])))
    return table_lines(rows)


def _when(last_active: str | None) -> str:
    return "" if last_active is None else f"{datetime.fromisoformat(last_active).astimezone():%Y-%m-%d %H:%M}"


def simulated_lines(status: Mapping[str, Any]) -> list[str]:
    """That the simulated teacher answered, if it did."""
    return [status["simulated"]] if status["simulated"] else []


def batch_line(batch: Mapping[str, Any]) -> str:
    """One batch (`ledger.batches.all_batches`)."""
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["created"]))
    state = batch["state"] or ("under way" if batch["name"] else "not confirmed")
    waiting = f", {counted(batch['calls'], 'call')} pending" if batch["calls"] else ""
    name = one_line(batch["name"] or f"(refed_batch {batch['nonce']})")
    return f"batch {name}: {counted(batch['requests'], 'request')} from {begun} to {batch['model']}, {state}{waiting}"


def given_up_line(batches: Sequence[Mapping[str, Any]]) -> str:
    """What became of the calls in `batches` that nobody asks about any more."""
    arrived = sum(batch["arrived"] for batch in batches)
    lost = sum(batch["calls"] for batch in batches) - arrived
    answers = counted(arrived, "answer already received is", "answers already received are")
    kept = f"; {answers} kept for a batch run" if arrived else ""
    return f"{len(batches)} given up: {counted(lost, 'call stays', 'calls stay')} charged in full{kept}"
