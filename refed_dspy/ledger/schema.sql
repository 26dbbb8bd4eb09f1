-- The ledger of one run. There is no other state. A row is written once its work is done, a call's before it is sent.
-- STRICT, CHECK and REFERENCES say what a value can be: SQLite's own checks find what was damaged, or changed by hand.
-- No whole number is negative and no fraction, a time in seconds say, as large as 1e11, but for what a caller gives (a
-- filter's or a metric's score, a `rollout_id` as `repetition`).
-- `sum`, `sample_sum`: checksums of a row's texts (format.py); NULL: written by an earlier version.
CREATE TABLE IF NOT EXISTS meta (
  name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL, sum INTEGER CHECK (sum >= 0)
) STRICT;
CREATE TABLE IF NOT EXISTS refs (
  position INTEGER PRIMARY KEY, id TEXT NOT NULL, record TEXT NOT NULL, sum INTEGER,
  CHECK (position >= 0 AND json_valid(record) AND sum >= 0)
) STRICT;

-- One answered request. `key` = digest of (model with its sampling, request, repetition); stage and item are those of
-- the first that made it. `output`: the typed outputs as JSON, or the text where nobody asked for a form; `raw`: the text
-- where the adapter that asked does not read that JSON.
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL, repetition INTEGER NOT NULL,
  output TEXT NOT NULL, raw TEXT, endpoint TEXT NOT NULL, created REAL NOT NULL, sum INTEGER,
  CHECK (abs(created) <= 1e11 AND sum >= 0)
) STRICT;
CREATE INDEX IF NOT EXISTS answers_of_item ON answers (item, stage);

-- What the model thought before the answer under `key`, where its server told.
CREATE TABLE IF NOT EXISTS reasoning (
  key TEXT PRIMARY KEY, text TEXT NOT NULL, sum INTEGER CHECK (sum >= 0)
) STRICT, WITHOUT ROWID;

-- Another stage or item that made a request which was answered already.
CREATE TABLE IF NOT EXISTS shared (
  item TEXT NOT NULL, stage TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (item, stage, key)
) STRICT, WITHOUT ROWID;

-- The answer of every request that was made for a stage of an item.
CREATE VIEW IF NOT EXISTS asked AS
  SELECT item, stage, key, repetition, output, endpoint, created FROM answers
  UNION ALL SELECT s.item, s.stage, s.key, repetition, output, endpoint, created FROM shared s JOIN answers a USING (key);

-- Every attempt sent to a teacher, whatever became of it; written before it is sent, with outcome 'sent'. NULL tokens:
-- not reported. Money in picodollars: `reserved` is the worst case, `cost` what it is charged (the worst case until it
-- is settled); NULL: the price is unknown.
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL, model TEXT NOT NULL,
  endpoint TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
  reserved INTEGER, cost INTEGER, created REAL NOT NULL, reasoning_tokens INTEGER,
  CHECK (
    id >= 0 AND abs(seconds) <= 1e11 AND prompt_tokens >= 0 AND cached_tokens >= 0 AND completion_tokens >= 0
    AND reserved >= 0 AND cost >= 0 AND abs(created) <= 1e11 AND reasoning_tokens >= 0
  )
) STRICT;

CREATE INDEX IF NOT EXISTS calls_of_item ON calls (item);
CREATE INDEX IF NOT EXISTS calls_of_key ON calls (key);

-- Batches at a provider. Written before the batch is made there (`name` NULL), again when the service took it (its id
-- there), and once it has ended (`state`: how). `nonce` is in the batch's metadata at the service.
CREATE TABLE IF NOT EXISTS batches (
  id INTEGER PRIMARY KEY, nonce TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, name TEXT,
  state TEXT, requests INTEGER NOT NULL, created REAL NOT NULL, ended REAL,
  CHECK (id >= 0 AND requests >= 0 AND abs(created) <= 1e11 AND abs(ended) <= 1e11)
) STRICT;

-- The calls in a batch that are not settled; `answer`: the service's answer, as JSON, once it has arrived.
CREATE TABLE IF NOT EXISTS batched (
  call INTEGER PRIMARY KEY, batch INTEGER NOT NULL, answer TEXT, CHECK (call >= 0 AND batch >= 0)
) STRICT;

-- Which model wrote an answer that was reused from another run: this run has no call for it.
CREATE TABLE IF NOT EXISTS reused (key TEXT PRIMARY KEY, model TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- When the run was worked on: one row a start. `last`: when the last thing of this start was written (triggers below).
CREATE TABLE IF NOT EXISTS starts (
  begun REAL NOT NULL, last REAL NOT NULL DEFAULT 0, CHECK (abs(begun) <= 1e11 AND abs(last) <= 1e11)
) STRICT;

-- A failed unit. `final` = 0: worth asking again on a later run.
CREATE TABLE IF NOT EXISTS failures (
  key TEXT PRIMARY KEY, stage TEXT NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
  final INTEGER NOT NULL, created REAL NOT NULL, CHECK (final >= 0 AND abs(created) <= 1e11)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS proposals (
  reference INTEGER NOT NULL, feature TEXT NOT NULL, round INTEGER NOT NULL,
  kept INTEGER NOT NULL, duplicates INTEGER NOT NULL, surplus INTEGER NOT NULL,
  PRIMARY KEY (reference, feature, round), CHECK (min(reference, round, kept, duplicates, surplus) >= 0)
) STRICT, WITHOUT ROWID;

-- `digest`: of the text, case and white space normalised. `used`: the round it was answered in; NULL while open.
-- `sample`: what the program made of it, as JSON, kept or dropped.
CREATE TABLE IF NOT EXISTS instructions (
  id INTEGER PRIMARY KEY, reference INTEGER NOT NULL REFERENCES refs (position), feature TEXT NOT NULL,
  round INTEGER NOT NULL, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL, used INTEGER, sample TEXT,
  sum INTEGER, sample_sum INTEGER,
  CHECK (id >= 0 AND reference >= 0 AND round >= 0 AND used >= 0 AND sum >= 0 AND sample_sum >= 0)
) STRICT;
CREATE INDEX IF NOT EXISTS instructions_of_reference ON instructions (reference);
CREATE INDEX IF NOT EXISTS open_instructions ON instructions (id) WHERE used IS NULL;

CREATE TABLE IF NOT EXISTS samples (
  seq INTEGER PRIMARY KEY, instruction INTEGER NOT NULL UNIQUE REFERENCES instructions (id), created REAL NOT NULL,
  CHECK (seq >= 0 AND abs(created) <= 1e11)
) STRICT;

-- The decisions of filters about an instruction or its sample; `filter` is the filter's name in the run. Nothing is
-- deleted: what was dropped stays in instructions and answers.
CREATE TABLE IF NOT EXISTS decisions (
  instruction INTEGER NOT NULL REFERENCES instructions (id), filter TEXT NOT NULL, position INTEGER NOT NULL,
  kept INTEGER NOT NULL, score REAL, reason TEXT NOT NULL, detail TEXT NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (instruction, filter), CHECK (position >= 0 AND kept >= 0 AND abs(created) <= 1e11)
) STRICT, WITHOUT ROWID;

-- A compile's candidates: programs that an optimizer tried, by the digest of their prompts; the first is the uncompiled.
CREATE TABLE IF NOT EXISTS candidates (
  digest TEXT PRIMARY KEY NOT NULL, seq INTEGER NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
  CHECK (seq >= 0 AND abs(created) <= 1e11)
) STRICT;

-- What a candidate scored on one example. `spent`: what the compile had cost by then, in picodollars.
CREATE TABLE IF NOT EXISTS evaluations (
  candidate TEXT NOT NULL, example TEXT NOT NULL, subset TEXT NOT NULL, score REAL NOT NULL, components TEXT NOT NULL,
  spent INTEGER NOT NULL, created REAL NOT NULL, PRIMARY KEY (candidate, example),
  CHECK (spent >= 0 AND abs(created) <= 1e11)
) STRICT, WITHOUT ROWID;

-- What a call counts for in `usage`. Tokens and costs that are not known count as none, and `unknown`, `unpriced` count
-- those calls: the first may have been billed, though it reported no tokens, and is charged its worst case (`reserved`).
CREATE VIEW IF NOT EXISTS counted AS SELECT
  id, stage, model, endpoint, 1 AS calls, outcome = 'ok' AS answered, coalesce(prompt_tokens, 0) AS prompt_tokens,
  coalesce(cached_tokens, 0) AS cached_tokens, coalesce(completion_tokens, 0) AS completion_tokens,
  coalesce(reasoning_tokens, 0) AS reasoning_tokens,
  prompt_tokens IS NULL AND outcome NOT LIKE 'http 4%' AND outcome NOT LIKE 'http 5%' AND outcome != 'sent' AS unknown,
  coalesce(cost, 0) AS cost,
  CASE WHEN prompt_tokens IS NULL AND outcome != 'sent' THEN coalesce(cost, 0) ELSE 0 END AS reserved,
  outcome = 'sent' AS in_flight, CASE WHEN outcome = 'sent' THEN coalesce(cost, 0) ELSE 0 END AS in_flight_cost,
  cost IS NULL AS unpriced, outcome = 'http 429' AS rate_limited
FROM calls;

-- The sums of `counted`, kept by the triggers below, so that a million calls are not read to show what they cost.
-- `first`: the number of the first of these calls. ANY: what is more than SQLite's whole numbers hold becomes a fraction.
CREATE TABLE IF NOT EXISTS usage (
  stage TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL, first INTEGER NOT NULL, calls INTEGER NOT NULL,
  answered INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, unknown INTEGER NOT NULL,
  cost ANY NOT NULL, reserved ANY NOT NULL, in_flight INTEGER NOT NULL, in_flight_cost ANY NOT NULL,
  unpriced INTEGER NOT NULL, rate_limited INTEGER NOT NULL, PRIMARY KEY (stage, model, endpoint),
  CHECK (
    min(
      first, calls, answered, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, unknown, cost,
      reserved, in_flight, in_flight_cost, unpriced, rate_limited
    ) >= 0
  )
) STRICT, WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS call_added AFTER INSERT ON calls BEGIN
  INSERT INTO usage SELECT
    stage, model, endpoint, id, calls, answered, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
    unknown, cost, reserved, in_flight, in_flight_cost, unpriced, rate_limited
  FROM counted WHERE id = NEW.id ON CONFLICT (stage, model, endpoint) DO UPDATE SET
    calls = calls + excluded.calls, answered = answered + excluded.answered,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens, unknown = unknown + excluded.unknown,
    cost = cost + excluded.cost, reserved = reserved + excluded.reserved, in_flight = in_flight + excluded.in_flight,
    in_flight_cost = in_flight_cost + excluded.in_flight_cost, unpriced = unpriced + excluded.unpriced,
    rate_limited = rate_limited + excluded.rate_limited;
  UPDATE starts SET last = max(last, NEW.created + NEW.seconds)
  WHERE rowid = (SELECT rowid FROM starts WHERE begun <= NEW.created ORDER BY begun DESC LIMIT 1);
END;
CREATE TRIGGER IF NOT EXISTS call_changes BEFORE UPDATE ON calls BEGIN
  UPDATE usage SET
    calls = usage.calls - gone.calls, answered = usage.answered - gone.answered,
    prompt_tokens = usage.prompt_tokens - gone.prompt_tokens,
    cached_tokens = usage.cached_tokens - gone.cached_tokens,
    completion_tokens = usage.completion_tokens - gone.completion_tokens,
    reasoning_tokens = usage.reasoning_tokens - gone.reasoning_tokens, unknown = usage.unknown - gone.unknown,
    cost = usage.cost - gone.cost, reserved = usage.reserved - gone.reserved,
    in_flight = usage.in_flight - gone.in_flight, in_flight_cost = usage.in_flight_cost - gone.in_flight_cost,
    unpriced = usage.unpriced - gone.unpriced, rate_limited = usage.rate_limited - gone.rate_limited
  FROM (SELECT * FROM counted WHERE id = OLD.id) AS gone
  WHERE (usage.stage, usage.model, usage.endpoint) = (gone.stage, gone.model, gone.endpoint);
END;
CREATE TRIGGER IF NOT EXISTS call_changed AFTER UPDATE ON calls BEGIN
  INSERT INTO usage SELECT
    stage, model, endpoint, id, calls, answered, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
    unknown, cost, reserved, in_flight, in_flight_cost, unpriced, rate_limited
  FROM counted WHERE id = NEW.id ON CONFLICT (stage, model, endpoint) DO UPDATE SET
    calls = calls + excluded.calls, answered = answered + excluded.answered,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens, unknown = unknown + excluded.unknown,
    cost = cost + excluded.cost, reserved = reserved + excluded.reserved, in_flight = in_flight + excluded.in_flight,
    in_flight_cost = in_flight_cost + excluded.in_flight_cost, unpriced = unpriced + excluded.unpriced,
    rate_limited = rate_limited + excluded.rate_limited;
  UPDATE starts SET last = max(last, NEW.created + NEW.seconds)
  WHERE rowid = (SELECT rowid FROM starts WHERE begun <= NEW.created ORDER BY begun DESC LIMIT 1);
END;
CREATE TRIGGER IF NOT EXISTS call_removed BEFORE DELETE ON calls BEGIN
  UPDATE usage SET
    calls = usage.calls - gone.calls, answered = usage.answered - gone.answered,
    prompt_tokens = usage.prompt_tokens - gone.prompt_tokens,
    cached_tokens = usage.cached_tokens - gone.cached_tokens,
    completion_tokens = usage.completion_tokens - gone.completion_tokens,
    reasoning_tokens = usage.reasoning_tokens - gone.reasoning_tokens, unknown = usage.unknown - gone.unknown,
    cost = usage.cost - gone.cost, reserved = usage.reserved - gone.reserved,
    in_flight = usage.in_flight - gone.in_flight, in_flight_cost = usage.in_flight_cost - gone.in_flight_cost,
    unpriced = usage.unpriced - gone.unpriced, rate_limited = usage.rate_limited - gone.rate_limited
  FROM (SELECT * FROM counted WHERE id = OLD.id) AS gone
  WHERE (usage.stage, usage.model, usage.endpoint) = (gone.stage, gone.model, gone.endpoint);
END;
CREATE TRIGGER IF NOT EXISTS answer_added AFTER INSERT ON answers BEGIN
  UPDATE starts SET last = max(last, NEW.created)
  WHERE rowid = (SELECT rowid FROM starts WHERE begun <= NEW.created ORDER BY begun DESC LIMIT 1);
END;
CREATE TRIGGER IF NOT EXISTS batch_added AFTER INSERT ON batches BEGIN
  UPDATE starts SET last = max(last, NEW.created)
  WHERE rowid = (SELECT rowid FROM starts WHERE begun <= NEW.created ORDER BY begun DESC LIMIT 1);
END;
