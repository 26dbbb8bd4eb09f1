// One row's lineage, as a path from the reference to the data set. Whatever a model wrote is set as text.
(function (refed) {
  "use strict";

  const { make } = refed;
  const MODES = ["merged", "side by side"];

  /** The panel that shows one row: beside the list where there is room, over the page where there is none. */
  refed.Detail = class {
    /**
     * @param {refed.Store} store
     * @param {{step: (by: number) => void, close: () => void, end: (by: number) => boolean}} acts what the buttons do;
     *   `end`: whether there is no row that way.
     */
    constructor(store, acts) {
      this.store = store;
      this.acts = acts;
      this.dialog = document.getElementById("detail");
      this.heading = document.getElementById("detail-title");
      this.path = document.getElementById("detail-path");
      this.buttons = { "-1": document.getElementById("detail-previous"), 1: document.getElementById("detail-next") };
      this.mode = MODES[0];
      this.unfolded = new Set(["feedback"]);
      this.row = -1;
      for (const [by, button] of Object.entries(this.buttons)) {
        button.addEventListener("click", () => this.acts.step(Number(by)));
      }
      document.getElementById("detail-close").addEventListener("click", () => this.acts.close());
      // Escape on a modal dialog: closed by us, so that the list hears of it.
      this.dialog.addEventListener("cancel", (event) => {
        event.preventDefault();
        this.acts.close();
      });
      this.wide = matchMedia("(min-width: 1100px)");
      this.wide.addEventListener("change", () => this.isOpen && this.place());
    }

    get isOpen() {
      return this.dialog.open;
    }

    /** Shows a row; `marker`: what to mark in it (refed.marker), `focus`: whether its heading gets the focus. */
    show(row, marker, focus) {
      this.row = row;
      this.marker = marker;
      this.heading.textContent = refed.called(this.store, row);
      for (const [by, button] of Object.entries(this.buttons)) {
        // Not `disabled`: that would throw the focus away when the last row is reached.
        button.setAttribute("aria-disabled", String(this.acts.end(Number(by))));
      }
      const place = this.isOpen ? this.stepInView() : null;
      this.path.replaceChildren(...this.steps(row));
      if (!this.isOpen) this.place();
      this.scrollTo(place);
      if (focus) this.heading.focus({ preventScroll: true });
    }

    /** The step at the upper edge, and how far it is above it: whoever goes on to the next row compares that step. */
    stepInView() {
      const edge = this.path.getBoundingClientRect().top;
      for (const step of this.path.children) {
        const { top, bottom } = step.getBoundingClientRect();
        if (bottom > edge) return { name: step.className, above: edge - top };
      }
      return null;
    }

    scrollTo(place) {
      const step = place && Array.from(this.path.children).find(({ className }) => className === place.name);
      this.path.scrollTop = step ? step.offsetTop + place.above : 0;
    }

    close() {
      this.row = -1;
      this.dialog.close();
      document.documentElement.classList.remove("covered");
    }

    /** Beside the list it must leave the list usable; over it, it must not. */
    place() {
      const focused = this.dialog.contains(document.activeElement) ? document.activeElement : null;
      this.dialog.close();
      if (this.wide.matches) this.dialog.show();
      else this.dialog.showModal();
      document.documentElement.classList.toggle("covered", !this.wide.matches);
      (focused ?? this.heading).focus({ preventScroll: true });
    }

    steps(row) {
      const origin = [this.reference(row), this.feedback(row), this.instruction(row), this.answers(row)];
      const why = [this.sampleFeedback(row), this.analysis(row), this.strategy(row)];
      const after = [this.decisions(row), this.verdicts(row), this.calls(row), this.program(row)];
      return [...origin, ...why, ...after].filter(Boolean);
    }

    /** A step of the path: `about` is shown small beside its title. */
    step(className, title, about, ...content) {
      return this.titled("li", `step ${className}`, title, about, ...content);
    }

    titled(tag, className, title, about, ...content) {
      const step = make(tag, className);
      const head = make("div", "step-head");
      head.append(make("h4", "", title));
      const notes = about.filter(Boolean);
      if (notes.length) head.append(make("bdi", "about", notes.join(" · ")));
      step.append(head, ...content);
      return step;
    }

    /** A block of a model's text, with its direction and line breaks. */
    text(text, className = "text", tag = "div") {
      const block = make(tag, className);
      block.dir = "auto";
      return refed.marked(block, text, this.marker);
    }

    list(texts) {
      const list = make("ul");
      list.append(...texts.map((text) => this.text(text, "", "li")));
      return list;
    }

    /** What can be folded; many rows share it, so it stays as it was left. */
    fold(name, title) {
      const fold = make("details");
      fold.open = this.unfolded.has(name);
      fold.addEventListener("toggle", () => this.unfolded[fold.open ? "add" : "delete"](name));
      const summary = make("summary");
      refed.marked(summary.appendChild(make("bdi")), title, this.marker);
      fold.append(summary);
      return fold;
    }

    reference(row) {
      const reference = this.store.reference(row);
      if (!reference) return this.step("reference", "Reference", ["not in this report"]);
      const fold = this.fold("reference", refed.titleOf(reference));
      if (reference.earlier) fold.append(...titled("Earlier in the conversation", this.text(reference.earlier)));
      fold.append(...titled("Instruction", this.text(reference.instruction)));
      fold.append(...titled("Response", this.text(reference.response)));
      fold.append(...titled("Id", this.text(reference.id)));
      return this.step("reference", "Reference", [reference.source], fold);
    }

    feedback(row) {
      const reference = this.store.reference(row);
      const feature = this.store.feature(row);
      const description = reference?.features?.[feature];
      const content = description ? titled(feature, this.text(description)) : [];
      if (reference?.feedback) {
        const fold = this.fold("feedback", "On the reference's response");
        fold.append(this.text(reference.feedback));
        content.push(fold);
      }
      return content.length ? this.step("feedback", "Feedback on the reference", [], ...content) : null;
    }

    /** Of a run with feedback on each row's plain response (sample-level feedback). */
    sampleFeedback(row) {
      const text = this.store.columns.feedback?.[row];
      return text ? this.step("sample-feedback", "Feedback on the plain response", [], this.text(text)) : null;
    }

    instruction(row) {
      const { columns } = this.store;
      const writer = this.store.writer(columns.writers[row][0]);
      const about = [`round ${columns.round[row]}`, this.store.feature(row), writer];
      const system = this.store.reference(row)?.system;
      const text = this.text(columns.instruction[row]);
      const shown = system ? [...titled("System prompt", this.text(system)), ...titled("New instruction", text)] : [text];
      return this.step("instruction", "Instruction", about, ...shown);
    }

    answers(row) {
      const { response, diff } = this.store.columns;
      const item = make("li", "answers");
      if (diff[row] === null) {
        item.append(this.answer("plain", row, response[row])); // Nothing was improved, or nothing was answered at all.
        return item;
      }
      const place = make("div");
      const draw = () => {
        const merged = this.mode === MODES[0];
        place.className = merged ? "" : "pair";
        if (merged) place.replaceChildren(this.merged(row));
        else place.replaceChildren(this.answer("plain", row), this.answer("improved", row));
      };
      draw();
      item.append(this.modes(draw), place);
      return item;
    }

    modes(draw) {
      const set = make("fieldset", "switch");
      set.append(make("legend", "", "Show the difference"));
      for (const mode of MODES) {
        const label = make("label");
        const radio = make("input");
        Object.assign(radio, { type: "radio", name: "difference", value: mode, checked: mode === this.mode });
        radio.addEventListener("change", () => {
          this.mode = mode;
          draw();
        });
        label.append(radio, make("span", "", mode));
        set.append(label);
      }
      return set;
    }

    about(kind, row) {
      const writer = this.store.writer(this.store.columns.writers[row][kind === "plain" ? 1 : 2]);
      if (kind === "plain") return [writer];
      const words = this.store.words(row);
      return [writer, Number.isNaN(words) ? "" : `${refed.count(words)} words`];
    }

    /** One response: as it is, or with what the other one does not have highlighted. */
    answer(kind, row, whole) {
      const title = kind === "plain" ? "Plain response" : "Improved response";
      let content = whole;
      if (whole === undefined) content = this.difference(row, kind === "plain" ? refed.REMOVED : refed.ADDED);
      else if (whole === null) content = make("p", "none", "There is none.");
      else content = this.text(whole);
      return this.titled("div", `step ${kind}`, title, this.about(kind, row), content);
    }

    merged(row) {
      const written = [...this.about("plain", row), ...this.about("improved", row)].filter(Boolean);
      const about = Array.from(new Set(written));
      return this.titled("div", "step merged", "Plain → improved response", about, this.difference(row, null));
    }

    /** Both texts walked along their difference; `only`: the one kind to show beside what is the same, null: both. */
    difference(row, only) {
      const { response, improved, diff } = this.store.columns;
      const block = make("div", "text diff");
      block.dir = "auto";
      let [plainAt, betterAt] = [0, 0];
      for (let i = 0; i < diff[row].length; i += 2) {
        const [kind, length] = [diff[row][i], diff[row][i + 1]];
        const [whole, at] = kind === refed.ADDED ? [improved[row], betterAt] : [response[row], plainAt];
        const text = whole.slice(at, at + length);
        if (kind !== refed.ADDED) plainAt += length;
        if (kind !== refed.REMOVED) betterAt += length;
        if (kind === refed.SAME) refed.marked(block, text, this.marker);
        else if (only === null || only === kind) block.append(this.changed(kind, text));
      }
      return block;
    }

    changed(kind, text) {
      return refed.marked(make(kind === refed.ADDED ? "ins" : "del"), text, this.marker);
    }

    analysis(row) {
      const analysis = this.store.columns.analysis[row];
      if (!analysis) return null;
      const titles = ["Strengths", "What to improve", "Feedback that applies"];
      const content = analysis.flatMap((texts, i) => (texts.length ? titled(titles[i], this.list(texts)) : []));
      return this.step("analysis", "Analysis", [], ...content);
    }

    strategy(row) {
      const strategy = this.store.columns.strategy[row];
      if (!strategy) return null;
      const [changes, rationale] = strategy;
      const content = changes.length ? titled("Planned changes", this.list(changes)) : [];
      if (rationale) content.push(...titled("Why", this.text(rationale)));
      return this.step("strategy", "Strategy", [], ...content);
    }

    decisions(row) {
      const decisions = this.store.columns.decisions[row];
      if (!decisions.length) return null;
      const content = decisions.map(([filter, kept, score, reason, detail]) => {
        const block = make("div", `decision ${kept ? "kept" : "dropped"}`);
        const line = make("p", "verdict");
        const name = this.store.names.filters[filter] ?? filter;
        line.append(make("strong", "", kept ? "kept" : "dropped"), " by ", make("bdi", "", name));
        if (score !== null) line.append(`, score ${refed.count(score)}`);
        block.append(line);
        if (reason) block.append(this.text(reason, "reason"));
        if (detail) block.append(this.text(detail));
        return block;
      });
      return this.step("decisions", "Filters", [], ...content);
    }

    /** The verdicts of judges on the row. */
    verdicts(row) {
      const verdicts = this.store.columns.verdicts?.[row] ?? [];
      const content = verdicts.map(([stage, reason, detail]) => {
        const block = make("div", "decision");
        block.append(make("p", "verdict", refed.stage(this.store, stage)));
        for (const text of [reason, detail]) if (text) block.append(this.text(text));
        return block;
      });
      return content.length ? this.step("verdicts", "What the judge said", [], ...content) : null;
    }

    calls(row) {
      const { calls, cost, prompt_tokens: prompt, completion_tokens: completion } = this.store.columns;
      const about = [
        Number.isNaN(cost[row] ?? NaN) ? "price unknown" : refed.dollars(cost[row]),
        `${refed.count(prompt[row])} tokens read, ${refed.count(completion[row])} written`,
      ];
      if (!calls[row].length) return this.step("calls", "Calls and cost", about);
      const scroll = make("div", "scroll");
      // On a narrow page it scrolls sideways, and that must not need a mouse.
      Object.assign(scroll, { tabIndex: 0, role: "region", ariaLabel: "Calls and cost, table" });
      scroll.append(this.table(calls[row]));
      return this.step("calls", "Calls and cost", about, scroll);
    }

    table(calls) {
      const table = make("table");
      const head = table.createTHead().insertRow();
      for (const title of ["stage", "calls", "read", "of them cached", "written", "dollars"]) {
        const cell = make("th", "", title);
        cell.scope = "col";
        head.append(cell);
      }
      const body = table.createTBody();
      for (const [stage, ...numbers] of calls) {
        const line = body.insertRow();
        line.append(make("td", "", refed.stage(this.store, stage)));
        const texts = numbers.map((value, i) => (i === 4 ? refed.dollars(value) || "unknown" : refed.count(value)));
        line.append(...texts.map((text) => make("td", "number", text)));
      }
      return table;
    }

    program(row) {
      const program = this.store.names.programs[this.store.columns.program[row]];
      const fold = this.fold("program", "Digest of its prompts");
      fold.append(this.text(program ?? "unknown", "version"));
      return this.step("program", "Program", [], fold);
    }
  };

  function titled(title, element) {
    return [make("h5", "", title), element];
  }
})((globalThis.refed ??= {}));
