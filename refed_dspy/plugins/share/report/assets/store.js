// The rows: what is derived from them, search, filters and orders. Touches no DOM.
(function (refed) {
  "use strict";

  /** Kinds of a difference's segments, as Python writes them. */
  refed.SAME = 0;
  refed.REMOVED = 1;
  refed.ADDED = 2;

  /** Words of a text: maximal runs without white space. */
  refed.countWords = function (text) {
    return (text.match(/\S+/g) || []).length;
  };

  /** Share of UTF-16 units in a difference that are on one side only, from 0 to 1; NaN: nothing was compared. */
  refed.changed = function (diff) {
    if (diff === null) return NaN;
    let [all, other] = [0, 0];
    for (let i = 0; i < diff.length; i += 2) {
      all += diff[i + 1];
      if (diff[i] !== refed.SAME) other += diff[i + 1];
    }
    return all === 0 ? 0 : other / all;
  };

  /** The rows of a report, and which of them to show in which order. A row is identified by its index, from 0. */
  refed.Store = class {
    /** @param {{names: object, columns: object}} data the result of decode. */
    constructor(data) { this.fill(data); }

    /** Takes these rows in place of those there are. */
    fill(data) {
      this.names = data.names;
      this.columns = data.columns;
      this.size = data.columns.kept.length;
      this.index = new refed.Index(this.size, (row) => this.texts(row).map(({ text }) => text));
      this.numeric = {
        number: Float64Array.from(this.columns.number, orNaN),
        words: new Float64Array(this.size).fill(NaN),
        change: Float64Array.from(this.columns.diff, refed.changed),
        score: Float64Array.from(this.columns.score, orNaN),
        cost: Float64Array.from(this.columns.cost, orNaN),
      };
      this.orders = {};
      this.counted = 0;
    }

    /**
     * Does some of what would take too long at once: counts words, indexes texts, sorts.
     * @param {number} budget milliseconds after which to stop.
     * @returns {boolean} whether all is done.
     */
    prepare(budget) {
      const end = performance.now() + budget;
      while (this.counted < this.size && performance.now() < end) this.countSome(200);
      if (this.counted < this.size || !this.index.build(end)) return false;
      const column = ["instruction", ...Object.keys(this.numeric)].find((name) => !(name in this.orders));
      if (column) this.order(column);
      return column === undefined;
    }

    countSome(many) {
      const end = Math.min(this.size, this.counted + many);
      for (; this.counted < end; this.counted++) {
        const text = this.columns.improved[this.counted] ?? this.columns.response[this.counted];
        if (text !== null) this.numeric.words[this.counted] = refed.countWords(text);
      }
    }

    /** Words of a row's improved response (the plain one's if it has no other); NaN: it has none. */
    words(row) {
      if (row >= this.counted) this.countSome(row + 1 - this.counted);
      return this.numeric.words[row];
    }

    reference = (row) => this.names.references[this.columns.reference[row]];
    feature = (row) => this.names.features[this.columns.feature[row]] ?? "";

    /** "model (endpoint)" of a writer's index; "" if it is unknown. */
    writer(index) {
      const writer = this.names.writers[index];
      if (writer === undefined) return "";
      return writer.endpoint ? `${writer.model} (${writer.endpoint})` : writer.model;
    }

    /** @returns {{name: string, text: string}[]} every text of a row that a search looks at, the most relevant first. */
    texts(row) {
      const { instruction, improved, response, analysis, strategy, feedback, verdicts, decisions } = this.columns;
      const texts = [
        { name: "instruction", text: instruction[row] },
        { name: "improved", text: improved[row] },
        { name: "plain", text: response[row] },
      ];
      for (const list of analysis[row] ?? []) for (const text of list) texts.push({ name: "analysis", text });
      for (const text of (strategy[row] ?? []).flat()) texts.push({ name: "strategy", text });
      for (const [, ...fields] of verdicts?.[row] ?? []) for (const text of fields) texts.push({ name: "judge", text });
      for (const [, , , ...fields] of decisions[row]) for (const text of fields) texts.push({ name: "filter", text });
      texts.push({ name: "feedback", text: feedback?.[row] });
      const reference = this.reference(row);
      texts.push({ name: "system prompt", text: reference?.system }, { name: "reference", text: reference?.id });
      texts.push({ name: "feature", text: this.feature(row) });
      return texts.filter(({ text }) => text);
    }

    /**
     * Rows in ascending order of a column; those without a value come last. Made once per column.
     * @param {string} column number, instruction, words, change, score or cost.
     * @returns {Uint32Array}
     */
    order(column) {
      if (column === "words") this.countSome(this.size);
      this.orders[column] ??= Uint32Array.from({ length: this.size }, (_, row) => row).sort(this.comparison(column));
      return this.orders[column];
    }

    comparison(column) {
      if (column === "instruction") {
        const collator = new Intl.Collator("en", { numeric: true });
        // The beginning decides; comparing texts of 50 kB by the rules of a language would not be free.
        const starts = this.columns.instruction.map((text) => text.slice(0, 80));
        return (a, b) => collator.compare(starts[a], starts[b]) || a - b;
      }
      const values = this.numeric[column];
      return (a, b) => {
        const difference = values[a] - values[b];
        if (difference === difference) return difference || a - b;
        return Number(Number.isNaN(values[a])) - Number(Number.isNaN(values[b])) || a - b;
      };
    }

    /** By row: 1 if every term (see refed.terms) occurs in one of its texts, else 0. */
    find(terms) {
      if (this.index.complete) return this.index.find(terms);
      // Right after the start: the same answer, read from the texts themselves, which takes some tenths of a second.
      const plain = (text) => text.toLowerCase().split(/\s+/).join(" ");
      const needles = terms.map((words) => words.join(" "));
      const lower = needles.some((needle) => needle.includes(" ")) ? plain : (text) => text.toLowerCase();
      return Uint8Array.from({ length: this.size }, (_, row) => {
        const texts = this.texts(row).map(({ text }) => lower(text));
        return needles.every((needle) => texts.some((text) => text.includes(needle)));
      });
    }

    /**
     * The rows to show.
     * @param {{terms: string[][], accepts: ((row: number) => boolean)[], column: string, descending: boolean}} wish
     * @returns {Uint32Array} rows in the order to show; those without a value in the column come last either way.
     */
    select(wish) {
      const hits = wish.terms.length ? this.find(wish.terms) : null;
      const order = this.order(wish.column);
      const values = this.numeric[wish.column];
      const rows = new Uint32Array(this.size);
      let count = 0;
      const take = (row) => {
        if ((hits === null || hits[row]) && wish.accepts.every((accepts) => accepts(row))) rows[count++] = row;
      };
      if (!wish.descending) {
        for (const row of order) take(row);
        return rows.subarray(0, count);
      }
      let valued = this.size;
      while (values && valued > 0 && Number.isNaN(values[order[valued - 1]])) valued--;
      for (let i = valued - 1; i >= 0; i--) take(order[i]);
      for (let i = valued; i < this.size; i++) take(order[i]);
      return rows.subarray(0, count);
    }
  };

  function orNaN(value) {
    return value === null ? NaN : value;
  }

  const BETWEEN = 0; // The token between two texts: no word has it, so a phrase never spans two texts.

  /**
   * An index of the words of all rows. A term without white space that occurs in a text occurs within one of its words:
   * so it is looked for in the vocabulary, which is a hundred times smaller than the texts, and the rows are read off.
   */
  refed.Index = class {
    /**
     * @param {number} size rows.
     * @param {(row: number) => string[]} texts a row's texts; asked once a row.
     */
    constructor(size, texts) {
      this.size = size;
      this.texts = texts;
      this.words = [""]; // By token; 0 is BETWEEN.
      this.ids = new Map();
      this.rowsOf = [0]; // By token: how many rows have it.
      this.seen = [-1]; // By token: the last row that was counted for it.
      this.sequences = []; // By row: its tokens, text after text.
      this.listed = 0;
      this.starts = null;
      this.last = new Map();
    }

    /** Goes on until a time (performance.now); returns whether the index is complete. */
    build(end) {
      while (this.sequences.length < this.size) {
        this.read(this.sequences.length);
        if (performance.now() >= end) return false;
      }
      if (this.starts === null) this.close();
      while (this.listed < this.size) {
        this.list(this.listed++);
        if (performance.now() >= end) return false;
      }
      this.cursors = this.seen = null;
      return true;
    }

    /** Whether find may be asked. */
    get complete() {
      return this.starts !== null && this.listed === this.size;
    }

    read(row) {
      const tokens = [];
      for (const text of this.texts(row)) {
        for (const word of text.toLowerCase().split(/\s+/)) if (word !== "") tokens.push(this.token(word, row));
        tokens.push(BETWEEN);
      }
      this.sequences.push(Uint32Array.from(tokens));
    }

    token(word, row) {
      let id = this.ids.get(word);
      if (id === undefined) {
        id = this.words.push(word) - 1;
        this.ids.set(word, id);
        this.rowsOf.push(0);
        this.seen.push(-1);
      }
      if (this.seen[id] !== row) {
        this.seen[id] = row;
        this.rowsOf[id]++;
      }
      return id;
    }

    close() {
      this.starts = new Uint32Array(this.words.length + 1);
      for (let id = 0; id < this.words.length; id++) this.starts[id + 1] = this.starts[id] + this.rowsOf[id];
      this.cursors = this.starts.slice();
      this.rows = new Uint32Array(this.starts[this.words.length]);
      this.seen = new Int32Array(this.words.length).fill(-1);
      // A word cut out of a text keeps the whole text in memory; cut out of the joined words, only those.
      this.words = this.words.join("\n").split("\n");
      this.ids = this.rowsOf = this.texts = null;
    }

    list(row) {
      for (const id of this.sequences[row]) {
        if (id === BETWEEN || this.seen[id] === row) continue;
        this.seen[id] = row;
        this.rows[this.cursors[id]++] = row;
      }
    }

    /**
     * Rows in which all terms occur. Only once complete.
     * @param {string[][]} terms the result of refed.terms, not empty.
     * @returns {Uint8Array} by row: 1 if it has them all.
     */
    find(terms) {
      const kept = new Map();
      const hits = new Uint8Array(this.size).fill(1);
      for (const words of terms) {
        const tokens = words.map((word, at) => this.tokens(word, placeOf(at, words.length), kept));
        for (const ids of tokens) this.having(ids).forEach((hit, row) => (hits[row] &= hit));
        if (tokens.length > 1) this.keepFollowing(hits, tokens);
      }
      this.last = kept;
      return hits;
    }

    /** Tokens that have a word at a place: anywhere within, at their end, as a whole, at their beginning. */
    tokens(word, place, kept) {
      const key = `${place} ${word}`;
      // While a query grows, only the hits of its shorter form are searched.
      const within = (old) => old.startsWith("in ") && word.includes(old.slice(3));
      const shorter = place === "in" && Array.from(this.last.keys()).find(within);
      const among = shorter ? this.last.get(shorter) : null;
      const ids = [];
      const count = among ? among.length : this.words.length;
      for (let i = among ? 0 : 1; i < count; i++) {
        const id = among ? among[i] : i;
        if (MATCHES[place](this.words[id], word)) ids.push(id);
      }
      kept.set(key, ids);
      return ids;
    }

    having(ids) {
      const rows = new Uint8Array(this.size);
      for (const id of ids) for (let i = this.starts[id]; i < this.starts[id + 1]; i++) rows[this.rows[i]] = 1;
      return rows;
    }

    /** Keeps those rows in which the tokens follow each other. */
    keepFollowing(hits, tokens) {
      const flags = tokens.map((ids) => {
        const has = new Uint8Array(this.words.length);
        for (const id of ids) has[id] = 1;
        return has;
      });
      for (let row = 0; row < this.size; row++) if (hits[row]) hits[row] = follows(this.sequences[row], flags);
    }
  };

  function follows(sequence, flags) {
    const [first, second] = flags;
    const last = sequence.length - flags.length;
    for (let from = 0; from <= last; from++) {
      if (first[sequence[from]] === 0 || second[sequence[from + 1]] === 0) continue;
      let at = 2;
      while (at < flags.length && flags[at][sequence[from + at]] === 1) at++;
      if (at === flags.length) return 1;
    }
    return 0;
  }

  const MATCHES = {
    in: (word, part) => word.includes(part),
    end: (word, part) => word.endsWith(part),
    whole: (word, part) => word === part,
    start: (word, part) => word.startsWith(part),
  };

  function placeOf(at, count) {
    if (count === 1) return "in";
    return at === 0 ? "end" : at === count - 1 ? "start" : "whole";
  }
})((globalThis.refed ??= {}));
