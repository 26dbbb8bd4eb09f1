// The list of rows, of which only those in view are in the document; and how texts and numbers are shown.
(function (refed) {
  "use strict";

  /** Appends `text` to `parent`, what `marker` (see refed.marker, or null) finds in it as <mark>. */
  refed.marked = function (parent, text, marker) {
    let from = 0;
    for (const hit of marker ? text.matchAll(marker) : []) {
      parent.append(text.slice(from, hit.index), refed.make("mark", "", hit[0]));
      from = hit.index + hit[0].length;
    }
    parent.append(text.slice(from));
    return parent;
  };

  /** Finds terms in a text to mark them: a RegExp with flags giu, or null where there is nothing to mark. */
  refed.marker = function (terms) {
    if (!terms.length) return null;
    const escape = (word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const escaped = terms.map((words) => words.map(escape).join("\\s+"));
    // The longest first: alternatives are tried in order, and a shorter one would hide a longer one.
    return new RegExp(escaped.sort((a, b) => b.length - a.length).join("|"), "giu");
  };

  const number = new Intl.NumberFormat("en");
  const percent = new Intl.NumberFormat("en", { style: "percent" });

  /** What a reference is called: how its instruction begins. */
  refed.titleOf = function (reference) {
    const text = reference ? reference.instruction.slice(0, 200).trim().replace(/\s+/g, " ") : "";
    return text.length > 70 ? `${text.slice(0, 69)}…` : text;
  };

  /** Dollars with two significant digits, as the cost of a row is far below a cent; "" without a value. */
  refed.dollars = function (value) {
    if (value === null || Number.isNaN(value)) return "";
    if (value === 0) return "$0";
    return `$${value.toFixed(Math.min(9, Math.max(2, 1 - Math.floor(Math.log10(value)))))}`;
  };

  /** A row's name for people: its number, or that it was dropped. */
  refed.called = function (store, row) {
    const at = store.columns.number[row];
    return at === null ? `Dropped row ${row + 1}` : `Sample ${number.format(at)}`;
  };

  /** A stage's name for people. */
  refed.stage = (store, stage) => (store.names.stages[stage] ?? String(stage)).replaceAll("_", " ");

  const AROUND = 16; // Characters before a hit in a row's second line.
  const SHOWN = 300; // Of a text in one line: more never fits, and laying out 50 kB would take its time.

  const CELLS = {
    number: (store, row) => store.columns.number[row] ?? "dropped",
    words: (store, row) => shown(store.words(row), number),
    change: (store, row) => shown(store.numeric.change[row], percent),
    score: (store, row) => shown(store.numeric.score[row], number),
    cost: (store, row) => refed.dollars(store.numeric.cost[row]),
  };

  function shown(value, format) {
    return Number.isNaN(value) ? "" : format.format(value);
  }

  /** A grid of which only the rows in view exist; one of them can be reached by Tab, arrow keys move it. */
  refed.List = class {
    /**
     * @param {refed.Store} store
     * @param {(row: number) => void} open called with the row that a person chose.
     */
    constructor(store, open) {
      this.store = store;
      this.open = open;
      this.scroller = document.getElementById("rows-scroller");
      this.body = document.getElementById("rows-body");
      this.grid = document.getElementById("grid");
      this.columns = Array.from(this.grid.querySelectorAll("[data-column]"), (header) => header.dataset.column);
      this.rows = new Uint32Array(0);
      this.elements = new Map(); // By position in the list.
      this.active = 0;
      this.opened = -1;
      this.terms = [];
      this.marker = null;
      this.scroller.addEventListener("scroll", () => this.renderSoon(), { passive: true });
      this.body.addEventListener("keydown", (event) => this.key(event));
      this.body.addEventListener("click", (event) => this.click(event));
      new ResizeObserver(() => this.renderSoon()).observe(this.scroller);
    }

    /** Shows these rows from the first one, with what was searched for (see refed.terms) marked. */
    show(rows, terms) {
      const row = this.rows[this.active];
      this.rows = rows;
      this.terms = terms;
      this.marker = refed.marker(terms);
      this.grid.setAttribute("aria-rowcount", String(rows.length + 1));
      // A rowgroup must contain a row.
      this.body.setAttribute("role", rows.length ? "rowgroup" : "presentation");
      this.scroller.scrollTop = 0;
      this.active = Math.max(0, row === this.opened ? rows.indexOf(row) : 0);
      this.render(true);
    }

    /** Marks the row that is open (-1: none). */
    setOpened(row) {
      this.opened = row;
      for (const [at, element] of this.elements) element.setAttribute("aria-selected", String(this.rows[at] === row));
    }

    /** Makes a row the one that Tab reaches, and scrolls to it; nothing happens if it is not listed. */
    reveal(row) {
      const at = this.rows.indexOf(row);
      if (at >= 0) this.moveTo(at, false);
    }

    /** The row `step` places after another one; undefined at the end, or if that one is not listed. */
    neighbour(row, step) {
      const at = this.rows.indexOf(row);
      return at < 0 ? undefined : this.rows[at + step];
    }

    /** Puts the keyboard's focus on the active row. */
    focus() {
      this.elements.get(this.active)?.focus({ preventScroll: true });
    }

    hasFocus() {
      return this.body.contains(document.activeElement);
    }

    get height() {
      return parseFloat(getComputedStyle(this.scroller).getPropertyValue("--row-height"));
    }

    renderSoon() {
      this.pending ||= requestAnimationFrame(() => {
        this.pending = 0;
        this.render(false);
      });
    }

    /** Puts the rows in view, and the active one, into the document, in order; `fresh`: fills all of them anew. */
    render(fresh) {
      const height = this.height;
      const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - 4);
      const end = Math.min(this.rows.length, first + Math.ceil(this.scroller.clientHeight / height) + 8);
      const wanted = [];
      for (let at = first; at < end; at++) wanted.push(at);
      // The active row stays even out of view: removing it would take the keyboard's focus away.
      if (this.active < first && this.active < this.rows.length) wanted.unshift(this.active);
      if (this.active >= end && this.active < this.rows.length) wanted.push(this.active);
      this.body.style.height = `${this.rows.length * height}px`;
      this.drop(new Set(wanted));
      let next = this.body.firstElementChild;
      for (const at of wanted) {
        const existing = this.elements.get(at);
        const element = existing ?? this.add(at, next);
        if (existing) next = existing.nextElementSibling;
        if (fresh || !existing) this.fill(element, at);
        element.style.transform = `translateY(${at * height}px)`;
        element.tabIndex = at === this.active ? 0 : -1;
      }
    }

    drop(wanted) {
      for (const [at, element] of this.elements) {
        if (wanted.has(at)) continue;
        element.remove();
        this.elements.delete(at);
      }
    }

    add(at, next) {
      const element = refed.make("div", "row");
      element.setAttribute("role", "row");
      for (const column of this.columns) {
        const cell = refed.make("div", `cell ${column}`);
        cell.setAttribute("role", "gridcell");
        element.append(cell);
      }
      this.body.insertBefore(element, next);
      this.elements.set(at, element);
      return element;
    }

    fill(element, at) {
      const row = this.rows[at];
      element.dataset.row = String(row);
      element.setAttribute("aria-rowindex", String(at + 2));
      element.setAttribute("aria-selected", String(row === this.opened));
      element.classList.toggle("dropped", !this.store.columns.kept[row]);
      this.columns.forEach((column, i) => {
        const cell = element.children[i];
        if (column === "instruction") cell.replaceChildren(this.line(row), this.secondLine(row));
        else cell.textContent = CELLS[column](this.store, row);
      });
    }

    line(row) {
      const line = refed.make("div", "line");
      line.dir = "auto";
      return refed.marked(line, this.store.columns.instruction[row].slice(0, SHOWN), this.marker);
    }

    /** Where the row comes from; or, if a term is not to be seen in the line above, where that is. */
    secondLine(row) {
      const line = refed.make("div", "line small");
      const above = this.store.columns.instruction[row].slice(0, SHOWN).toLowerCase();
      const term = this.terms.find((words) => !words.every((word) => above.includes(word)));
      const hit = term && this.hit(row, term);
      if (hit) {
        line.append(refed.make("span", "where", `${hit.name}: `), hit.at > AROUND ? "…" : "");
        const from = Math.max(0, hit.at - AROUND);
        line.append(refed.marked(refed.make("bdi"), hit.text.slice(from, from + SHOWN), this.marker));
        return line;
      }
      line.append(refed.make("bdi", "", this.store.feature(row)), " · ");
      line.append(refed.make("bdi", "", refed.titleOf(this.store.reference(row))));
      return line;
    }

    hit(row, term) {
      const marker = refed.marker([term]);
      for (const { name, text } of this.store.texts(row)) {
        // A search that is blind to case costs ten times what this costs, and most texts do not have the term.
        if (!text.toLowerCase().includes(term[0])) continue;
        const at = text.search(marker);
        if (at >= 0) return { name, text, at };
      }
      return null;
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (event.key in steps) this.moveTo(this.active + steps[event.key], true);
      else if (event.key === "Enter" || event.key === " ") this.open(this.rows[this.active]);
      else return;
      event.preventDefault();
    }

    click(event) {
      const element = event.target.closest("[role=row]");
      if (!element) return;
      this.active = this.rows.indexOf(Number(element.dataset.row));
      this.render(false);
      this.open(this.rows[this.active]);
    }

    moveTo(at, focus) {
      if (!this.rows.length) return;
      this.active = Math.min(this.rows.length - 1, Math.max(0, at));
      const height = this.height;
      const top = this.active * height;
      const bottom = top + height - this.scroller.clientHeight;
      if (this.scroller.scrollTop > top) this.scroller.scrollTop = top;
      else if (this.scroller.scrollTop < bottom) this.scroller.scrollTop = bottom;
      this.render(false);
      if (focus) this.focus();
    }
  };
})((globalThis.refed ??= {}));
