// The controls that choose the rows, and the start of the page.
(function (refed) {
  "use strict";

  /**
   * A search's terms: words apart, "in quotes" a phrase (an open quote reaches to the end), all lower case.
   * @param {string} query
   * @returns {string[][]} each term as its words; a term of one word matches inside words too.
   */
  refed.terms = function (query) {
    const matches = query.toLowerCase().matchAll(/"([^"]*)"?|[^\s"]+/g);
    return Array.from(matches, (hit) => (hit[1] ?? hit[0]).split(/\s+/).filter(Boolean)).filter((words) => words.length);
  };

  /** What chooses the rows. Calls `changed` whenever a person changes something; `wish` then has the choice. */
  refed.Controls = class {
    constructor(store, changed) {
      this.store = store;
      this.changed = changed;
      this.search = document.getElementById("search");
      this.filters = document.getElementById("filters");
      this.headers = Array.from(document.querySelectorAll("#grid [data-column]"));
      this.column = "number";
      this.descending = false;
      this.offer();
      this.search.addEventListener("input", () => this.notify());
      this.filters.addEventListener("input", () => this.notify());
      document.getElementById("reset").addEventListener("click", () => this.reset());
      for (const header of this.headers) {
        header.querySelector("button").addEventListener("click", () => this.sort(header.dataset.column));
      }
      const score = this.headers.find((header) => header.dataset.column === "score");
      if (score) score.querySelector("button").title = this.giver;
      this.mark();
    }

    /** Who gave the scores. */
    get giver() {
      return this.store.names.scoring ? `given by ${this.store.names.scoring}` : "";
    }

    /** Puts the filters in place; what was chosen in them stays chosen, where there still is such a thing. */
    offer() {
      const before = new Map(Array.from(this.filters.querySelectorAll("select, input"), (field) => [field.id, chosen(field)]));
      this.filters.replaceChildren();
      [this.from, this.to] = [];
      this.selects = this.choices().filter((choice) => choice.names.length > 1).map((choice) => this.select(choice));
      const scored = this.headers.some(({ dataset }) => dataset.column === "score");
      if (scored && new Set(this.store.columns.score).size > 2) this.range();
      for (const field of this.filters.querySelectorAll("select, input")) {
        const value = before.get(field.id);
        if (field.options) field.value = Array.from(field.options).find(({ dataset }) => dataset.name === value)?.value ?? "";
        else field.value = value ?? "";
      }
    }

    /** What there is to choose from: of each, names and by row the indexes of those it has. */
    choices() {
      const { columns, names } = this.store;
      return [
        named("Reference", "reference", names.references.map(refed.titleOf), (row) => [columns.reference[row]]),
        named("Feature", "feature", names.features, (row) => [columns.feature[row]]),
        named("Kept or dropped", "kept", ["dropped", "kept"], (row) => [columns.kept[row]]),
        named("Writer", "writer", names.writers.map((_, i) => this.store.writer(i)), (row) => columns.writers[row]),
        this.reasons(),
      ].map((choice) => ({ ...choice, counts: this.tally(choice) })).map(withRows);
    }

    reasons() {
      const indexes = new Map();
      const of = this.store.columns.decisions.map((decisions) =>
        decisions.filter(([, , , reason]) => reason).map(([filter, , , reason]) => {
          const name = `${this.store.names.filters[filter] ?? filter}: ${reason}`;
          if (!indexes.has(name)) indexes.set(name, indexes.size);
          return indexes.get(name);
        }),
      );
      return named("Reason of a filter", "reason", Array.from(indexes.keys()), (row) => of[row]);
    }

    tally({ names, of }) {
      const counts = new Uint32Array(names.length);
      for (let row = 0; row < this.store.size; row++) for (const at of new Set(of(row))) if (at >= 0) counts[at]++;
      return counts;
    }

    select({ label, id, names, counts, of }) {
      const field = refed.make("label", "field", label);
      const select = refed.make("select");
      select.id = `filter-${id}`;
      select.append(new Option("all", ""));
      for (const { name, at } of names) {
        const option = new Option(`${cut(name)} (${refed.count(counts[at])})`, String(at));
        option.dataset.name = name;
        select.append(option);
      }
      field.append(select);
      this.filters.append(field);
      return { select, of };
    }

    range() {
      const scores = this.store.numeric.score.filter((score) => !Number.isNaN(score)).sort();
      const ends = [["from", "Score from", scores[0]], ["to", "Score to", scores[scores.length - 1]]];
      for (const [id, label, placeholder] of ends) {
        const field = refed.make("label", "field narrow", label);
        const input = refed.make("input");
        Object.assign(input, { type: "number", step: "any", id: `score-${id}`, title: this.giver, placeholder: refed.count(placeholder) });
        field.append(input);
        this.filters.append(field);
        this[id] = input;
      }
    }

    /** The tests a row has to pass. */
    accepts() {
      const chosen = this.selects.filter(({ select }) => select.value !== "");
      const tests = chosen.map(({ select, of }) => {
        const at = Number(select.value);
        return (row) => of(row).includes(at);
      });
      const { score } = this.store.numeric;
      const [from, to] = [this.from?.valueAsNumber, this.to?.valueAsNumber];
      if (this.from && !Number.isNaN(from)) tests.push((row) => score[row] >= from);
      if (this.to && !Number.isNaN(to)) tests.push((row) => score[row] <= to);
      return tests;
    }

    /** Sorts by a column; if it is sorted by it already, in the opposite order. */
    sort(column) {
      this.descending = this.column === column && !this.descending;
      this.column = column;
      this.mark();
      this.notify();
    }

    mark() {
      for (const header of this.headers) {
        const direction = this.descending ? "descending" : "ascending";
        header.setAttribute("aria-sort", header.dataset.column === this.column ? direction : "none");
      }
    }

    reset() {
      this.search.value = "";
      for (const { select } of this.selects) select.value = "";
      for (const input of [this.from, this.to]) if (input) input.value = "";
      this.notify();
      this.search.focus();
    }

    notify() {
      this.changed();
    }

    /** What is chosen at the moment. */
    wish() {
      return { query: this.search.value, accepts: this.accepts(), column: this.column, descending: this.descending };
    }
  };

  function chosen(field) {
    return field.options ? field.selectedOptions[0].dataset.name : field.value;
  }

  function named(label, id, names, of) {
    return { label, id, names, of };
  }

  /** Keeps the names that at least one row has: a choice without rows is not offered. */
  function withRows(choice) {
    const names = choice.names.map((name, at) => ({ name, at })).filter(({ at }) => choice.counts[at] > 0);
    return { ...choice, names };
  }

  function cut(name) {
    return name.length > 60 ? `${name.slice(0, 59)}…` : name;
  }

  const SLICE = 24; // Milliseconds of preparation at a time: a key that is pressed meanwhile still answers at once.

  /** The sample browser: list, controls and detail, and what happens between them. */
  refed.Browser = class {
    constructor(store) {
      this.store = store;
      this.status = document.getElementById("status");
      this.terms = [];
      this.list = new refed.List(store, (row) => this.open(row, true));
      this.detail = new refed.Detail(store, {
        step: (by) => this.step(by),
        close: () => this.close(),
        end: (by) => this.list.neighbour(this.detail.row, by) === undefined,
      });
      this.controls = new refed.Controls(store, () => this.choose());
      document.addEventListener("keydown", (event) => this.key(event));
      addEventListener("hashchange", () => this.follow());
      this.choose();
      document.documentElement.dataset.state = "list";
      this.prepare();
      this.follow();
    }

    /** Shows what the controls ask for. */
    choose() {
      const wish = this.controls.wish();
      this.terms = refed.terms(wish.query);
      const rows = this.store.select({ ...wish, terms: this.terms });
      this.list.show(rows, this.terms);
      document.getElementById("browser").style.setProperty("--rows", this.store.size);
      document.getElementById("none").hidden = rows.length > 0;
      const counted = [this.tally(rows, 1, "sample"), this.tally(rows, 0, "dropped row")];
      this.status.textContent = counted.filter(Boolean).join(", ");
      document.getElementById("reset").hidden = rows.length === this.store.size;
    }

    /** How many of the rows that were kept (1) or dropped (0) are among `rows`; "" where the run has none. */
    tally(rows, kept, name) {
      const flags = this.store.columns.kept;
      const all = flags.filter((flag) => flag === kept).length;
      const shown = rows.reduce((sum, row) => sum + (flags[row] === kept), 0);
      const of = shown === all ? "" : `${refed.count(shown)} of `;
      return all ? `${of}${refed.count(all)} ${name}${all === 1 ? "" : "s"}` : "";
    }

    /** Shows other rows in place of those there are: the same and more. */
    refill(data) {
      const { instruction } = this.store.columns;
      const open = instruction[this.detail.row];
      this.store.fill(data);
      this.detail.row = this.store.columns.instruction.indexOf(open);
      this.list.setOpened(this.detail.row);
      this.controls.offer();
      const top = this.list.scroller.scrollTop;
      this.choose();
      this.list.scroller.scrollTop = top;
      this.prepare();
    }

    prepare() {
      if (!this.store.prepare(SLICE)) setTimeout(() => this.prepare());
      else document.documentElement.dataset.state = "ready";
    }

    /** Shows a row's lineage; `focus`: whether the panel takes the keyboard's focus. */
    open(row, focus) {
      this.list.setOpened(row);
      this.list.reveal(row);
      document.getElementById("browser").classList.add("with-detail");
      this.detail.show(row, refed.marker(this.terms), focus);
      history.replaceState(null, "", `#${this.anchor(row)}`);
    }

    close() {
      const row = this.detail.row;
      this.detail.close();
      document.getElementById("browser").classList.remove("with-detail");
      this.list.setOpened(-1);
      this.list.render(false);
      this.list.reveal(row);
      this.list.focus();
      history.replaceState(null, "", "#samples");
    }

    step(by) {
      const row = this.list.neighbour(this.detail.row, by);
      if (row === undefined) return;
      const inList = this.list.hasFocus();
      this.open(row, false);
      if (inList) this.list.focus();
    }

    /** A row's permalink: its sample's number; a dropped row has none, and is identified by its place. */
    anchor(row) {
      const number = this.store.columns.number[row];
      return number === null ? `dropped-${row + 1}` : `sample-${number}`;
    }

    /** Opens the row that the address names, if any. */
    follow() {
      const [, kind, digits] = /^#(sample|dropped)-(\d+)$/.exec(location.hash) ?? [];
      if (!kind) return;
      const row = kind === "sample" ? this.store.columns.number.indexOf(Number(digits)) : Number(digits) - 1;
      // Nor a sample's row by its place: one row, one address.
      if (!(row in this.store.columns.number) || this.anchor(row) !== `${kind}-${digits}`) return;
      if (row === this.detail.row) return;
      document.getElementById("samples").scrollIntoView();
      this.open(row, true);
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const root = document.documentElement;
      const typing = event.target.matches("input:not([type=radio]), select");
      // In a search that is not empty, Escape empties it: the browser does that.
      if (event.key === "Escape" && this.detail.isOpen && !(typing && event.target.value)) this.close();
      else if (typing) return;
      else if (event.key === "/" && !root.classList.contains("covered")) this.controls.search.focus();
      else if (event.key === "j" && this.detail.isOpen) this.step(1);
      else if (event.key === "k" && this.detail.isOpen) this.step(-1);
      else return;
      event.preventDefault();
    }
  };

  /** Starts the page. If it cannot be shown, a message takes the list's place. */
  async function start() {
    refed.theme();
    const rows = document.getElementById("rows");
    if (!rows) return;
    const data = await refed.decode(rows.textContent).catch(failed);
    if (!data) return;
    rows.remove(); // Tens of megabytes that are not needed twice.
    const store = new refed.Store(data);
    const browser = (refed.browser = new refed.Browser(store));
    const describe = (row) => `${refed.called(store, row)}: ${store.columns.instruction[row].slice(0, 200)}`;
    refed.follow(describe, (row) => browser.open(row, true));
  }

  function failed(error) {
    document.documentElement.dataset.state = "failed";
    document.getElementById("status").textContent =
      `The rows cannot be read (${error.message}): the file was cut or changed, or the browser is older than 2024. ` +
      "Make the report again, or open it in a newer browser.";
  }

  start().catch(failed);
})((globalThis.refed ??= {}));
