// Two answers at a time: what an annotator says of them, kept in the browser, and downloaded as a file.
(function (refed) {
  "use strict";

  const SIDES = ["A", "B"];
  const GRADES = [1, 2, 3, 4, 5, null]; // null: cannot tell.
  const VERDICTS = { a: "A", b: "B", t: "tie", c: "cannot tell" };

  /**
   * What was said, by a pair's id: {verdict, grades: {criterion: {A, B}}, at}. It is kept in the browser's storage, an
   * entry a pair, so that two tabs with the same page lose nothing of each other's.
   */
  refed.Said = class {
    /** @param {{set: string, annotator: string, criteria: {name: string}[], pairs: {id: string}[]}} data the page's. */
    constructor(data) {
      this.data = data;
      this.prefix = `refed annotate ${data.set} ${data.annotator} `;
      this.records = new Map();
      this.kept = true;
      this.session = this.read("session") ?? random();
      this.write("session", this.session);
      for (const { id } of data.pairs) this.load(id);
    }

    load(id) {
      const text = this.read(id);
      if (text) this.records.set(id, JSON.parse(text));
      else this.records.delete(id);
    }

    /** The pair whose entry has this key; undefined where it is no entry of this page's. */
    idOf(key) {
      const id = key?.startsWith(this.prefix) ? key.slice(this.prefix.length) : "";
      return this.data.pairs.find((pair) => pair.id === id)?.id;
    }

    of(id) {
      return this.records.get(id) ?? { verdict: null, grades: {}, at: "" };
    }

    set(id, changed) {
      const record = { ...this.of(id), ...changed, at: new Date().toISOString() };
      this.records.delete(id); // So that the last one said is the last one in the map.
      this.records.set(id, record);
      this.write(id, JSON.stringify(record));
    }

    grade(id, criterion, side, grade) {
      const { grades } = this.of(id);
      this.set(id, { grades: { ...grades, [criterion]: { ...grades[criterion], [side]: grade } } });
    }

    /** The grades that are missing, as [criterion, side]. */
    missing(id) {
      const { grades } = this.of(id);
      const every = this.data.criteria.flatMap(({ name }) => SIDES.map((side) => [name, side]));
      return every.filter(([name, side]) => grades[name]?.[side] === undefined);
    }

    isJudged(id) {
      return this.of(id).verdict !== null && !this.missing(id).length;
    }

    get judged() {
      return this.data.pairs.filter(({ id }) => this.isJudged(id));
    }

    /** The pair that was judged last; undefined where none was. */
    get last() {
      const by = (a, b) => (b[1].at >= a[1].at ? b : a);
      const judged = Array.from(this.records).filter(([, { verdict }]) => verdict !== null);
      return judged.length ? judged.reduce(by)[0] : undefined;
    }

    /** The file: a line for each pair that was judged. */
    lines() {
      const { set, annotator } = this.data;
      const line = ({ id }) => ({ set, annotator, pair: id, ...this.of(id), session: this.session });
      return this.judged.map((pair) => `${JSON.stringify(line(pair))}\n`);
    }

    read(name) {
      try {
        return localStorage.getItem(this.prefix + name);
      } catch {
        return null; // Storage is switched off, as writing will tell.
      }
    }

    write(name, text) {
      try {
        localStorage.setItem(this.prefix + name, text);
      } catch {
        this.kept = false; // Switched off, or full.
      }
    }
  };

  function random() {
    return Array.from(crypto.getRandomValues(new Uint32Array(2)), (part) => part.toString(16)).join("");
  }

  /** The page: one pair at a time. */
  refed.Judging = class {
    constructor(data) {
      this.data = data;
      this.said = new refed.Said(data);
      this.unsaved = false;
      this.slots = data.criteria.flatMap((criterion) => SIDES.map((side) => this.slot(criterion, side)));
      this.buttons = Array.from(document.querySelectorAll(".choice"));
      for (const button of this.buttons) button.addEventListener("click", () => this.decide(button.dataset.verdict));
      const acts = { back: () => this.step(-1), forward: () => this.step(1), undo: () => this.undo() };
      for (const [name, act] of Object.entries({ ...acts, next: () => this.next(), download: () => this.download() })) {
        element(name)?.addEventListener("click", act);
      }
      document.addEventListener("keydown", (event) => this.key(event));
      addEventListener("storage", (event) => this.elsewhere(event));
      addEventListener("beforeunload", (event) => !this.said.kept && this.unsaved && event.preventDefault());
      element("pair").hidden = false;
      this.show(Math.max(0, data.pairs.findIndex(({ id }) => !this.said.isJudged(id))));
    }

    /** The place for one grade, in the card of its answer. */
    slot({ name, description }, side) {
      const place = element(`grades-${side}`);
      const set = refed.make("fieldset", "switch");
      const legend = refed.make("legend", "", name);
      legend.append(refed.make("span", "skip", ` of answer ${side}`));
      const at = place.querySelectorAll("fieldset").length;
      const radios = GRADES.map((grade) => {
        const [label, radio] = [refed.make("label"), refed.make("input")];
        Object.assign(radio, { type: "radio", name: `grade-${side}-${at}`, autocomplete: "off" });
        radio.addEventListener("change", () => this.grade(slot, grade));
        label.append(radio, refed.make("span", "", grade ?? "cannot tell"));
        set.append(label);
        return radio;
      });
      set.prepend(legend);
      const slot = { name, side, set, radios };
      set.addEventListener("focusin", () => this.mark(slot));
      place.append(set);
      if (description !== name) place.append(refed.make("p", "", description));
      return slot;
    }

    get id() {
      return this.data.pairs[this.at].id;
    }

    /** Shows the pair at this place, from its beginning. */
    show(at) {
      this.at = at;
      const pair = this.data.pairs[at];
      element("pair-title").textContent = `Pair ${refed.count(at + 1)} of ${refed.count(this.data.pairs.length)}`;
      element("instruction").textContent = pair.instruction;
      for (const side of SIDES) element(`answer-${side}`).textContent = pair[side] || "(an empty answer)";
      element("back").setAttribute("aria-disabled", String(at === 0));
      element("forward").setAttribute("aria-disabled", String(at === this.data.pairs.length - 1));
      this.draw();
      const [criterion, side] = this.said.missing(this.id)[0] ?? [];
      this.mark(this.slots.find((slot) => slot.name === criterion && slot.side === side) ?? this.slots[0]);
      scrollTo(0, 0);
      element("pair-title").focus({ preventScroll: true });
    }

    /** Shows what was said: of the pair, and of how many. */
    draw() {
      const { verdict, grades } = this.said.of(this.id);
      for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
      for (const { name, side, radios } of this.slots) {
        const grade = grades[name]?.[side];
        radios.forEach((radio, i) => (radio.checked = GRADES[i] === grade));
      }
      const [judged, all] = [this.said.judged.length, this.data.pairs.length];
      element("progress").value = judged;
      element("status").textContent = `${refed.count(judged)} of ${refed.count(all)} judged`;
      element("done").hidden = judged < all;
      document.documentElement.dataset.state = judged < all ? "ready" : "done";
      this.say("");
      if (!this.said.kept) {
        const warning =
          "This browser keeps nothing for this page: what you choose is lost when you close or reload it. " +
          "Download the verdicts before you do, or open the page in another browser.";
        if (element("warning").hidden) Object.assign(element("warning"), { hidden: false, textContent: warning });
      }
    }

    say(text) {
      element("message").textContent = text;
    }

    /** The grade that a digit gives. */
    mark(slot) {
      this.marked = slot;
      for (const { set } of this.slots) set.toggleAttribute("data-marked", set === slot?.set);
    }

    decide(verdict) {
      this.said.set(this.id, { verdict });
      this.unsaved = true;
      if (!this.slots.length) this.next();
      else this.draw();
    }

    grade(slot, grade) {
      this.said.grade(this.id, slot.name, slot.side, grade);
      this.unsaved = true;
      this.mark(this.slots[Math.min(this.slots.indexOf(slot) + 1, this.slots.length - 1)]);
      this.marked.set.scrollIntoView({ block: "nearest" });
      this.draw();
    }

    /** Goes on to the next pair that is not judged, once this one is. */
    next() {
      const [[criterion, side] = []] = this.said.missing(this.id);
      if (this.said.of(this.id).verdict === null) return this.say("Still missing: which answer is better.");
      if (criterion) return this.say(`Still missing: the grade of answer ${side} for ${criterion}; 0 is "cannot tell".`);
      const { pairs } = this.data;
      const order = [...pairs.keys()].map((i) => (this.at + 1 + i) % pairs.length);
      const at = order.find((i) => !this.said.isJudged(pairs[i].id));
      if (at !== undefined) return this.show(at);
      this.draw();
      scrollTo(0, 0);
      element("done-title").focus({ preventScroll: true });
    }

    step(by) {
      if (this.at + by in this.data.pairs) this.show(this.at + by);
    }

    /** Takes the last verdict back, and shows its pair. */
    undo() {
      const id = this.said.last;
      if (id === undefined) return this.say("There is no verdict to take back.");
      this.said.set(id, { verdict: null });
      this.unsaved = true;
      this.show(this.data.pairs.findIndex((pair) => pair.id === id));
      this.say("The verdict was taken back.");
    }

    download() {
      const lines = this.said.lines();
      if (!lines.length) return this.say("There is nothing to download yet.");
      const link = refed.make("a");
      link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
      link.download = `verdicts-${this.data.annotator}.jsonl`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      this.unsaved = false;
      this.say(`Downloaded: ${refed.count(lines.length)} of ${refed.count(this.data.pairs.length)} pairs, in ${link.download}.`);
    }

    /** Another tab with this page said something. */
    elsewhere(event) {
      const id = this.said.idOf(event.key);
      if (id === undefined) return;
      this.said.load(id);
      this.draw();
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
      const on = (selector) => event.target.matches?.(selector);
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const moves = { ArrowLeft: -1, ArrowRight: 1, k: -1, j: 1 };
      if (key in VERDICTS) this.decide(VERDICTS[key]);
      else if (/^[0-5]$/.test(key) && this.marked) this.grade(this.marked, Number(key) || null);
      else if (key in moves && !(key.length > 1 && on("input"))) this.step(moves[key]); // Arrows are a switch's own.
      else if (key === "Enter" && !on("button, a") && this.slots.length) this.next();
      else if (key === "u") this.undo();
      else if (key === "d") this.download();
      else return;
      event.preventDefault();
    }
  };

  function element(id) {
    return document.getElementById(id);
  }

  async function start() {
    refed.theme();
    const rows = element("rows");
    refed.judging = new refed.Judging(await refed.decode(rows.textContent));
  }

  function failed(error) {
    document.documentElement.dataset.state = "failed";
    element("status").textContent =
      `The pairs cannot be read (${error.message}): the file was cut or changed, or the browser is older than 2024. ` +
      "Ask for the page again, or open it in a newer browser.";
  }

  start().catch(failed);
})((globalThis.refed ??= {}));
