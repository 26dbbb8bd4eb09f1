// The page while the work goes on: figures every second, if they take no longer, and the rest when it changed.
(function (refed) {
  "use strict";

  const PARTS = ["head", "notes", "glance", "charts", "tables"];
  const LEAST = 3000; // Milliseconds between two pages, at least; and ten times what the last one took.
  let next = 0;
  let shown = null; // The mark of what the page shows.

  async function ask(path) {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  /** Figures into the tiles that there are. */
  function figures(facts) {
    const tiles = new Map(Array.from(document.querySelectorAll(".tile"), (tile) => [tile.firstElementChild.textContent, tile]));
    for (const { name, value, note } of facts) {
      const tile = tiles.get(name);
      if (!tile) continue;
      tile.querySelector(".value").textContent = value;
      if (tile.querySelector(".note")) tile.querySelector(".note").textContent = note;
    }
  }

  /** Takes over a page that was made just now. Without the same parts it is shown as a new one. */
  async function page(text) {
    const made = new DOMParser().parseFromString(text, "text/html");
    const has = (place) => (id) => place.getElementById(id) !== null;
    const ids = ["samples", ...PARTS, ...Array.from(document.querySelectorAll(".gallery"), ({ id }) => id)];
    if (!ids.every((id) => has(made)(id) === has(document)(id))) return location.reload();
    for (const id of ids) {
      const [old, fresh] = [document.getElementById(id), made.getElementById(id)];
      // Not under a person's hands, nor the list, whose rows come below.
      if (id !== "samples" && old && !old.contains(document.activeElement)) old.replaceChildren(...fresh.childNodes);
    }
    const rows = made.getElementById("rows");
    if (rows && refed.browser) refed.browser.refill(await refed.decode(rows.textContent));
  }

  async function follow() {
    const live = document.getElementById("live");
    let wait = 1000; // Milliseconds between two looks at the figures, at least; and ten times what the last one took.
    try {
      const asked = performance.now();
      const now = await (await ask("now")).json();
      wait = Math.max(wait, 10 * (performance.now() - asked));
      figures(now.facts);
      live.textContent = "";
      if (now.mark !== shown && performance.now() >= next) {
        const begun = performance.now();
        const made = await ask("./");
        await page(await made.text());
        shown = now.mark;
        next = performance.now() + Math.max(LEAST, 10 * (performance.now() - begun));
      }
    } catch (error) {
      live.textContent = `Not followed any more (${error.message}). Is refed report --watch still running?`;
    }
    setTimeout(follow, wait);
  }

  const live = refed.make("p", "lead");
  live.id = "live";
  live.setAttribute("role", "status");
  document.querySelector("main").prepend(live);
  follow();
})((globalThis.refed ??= {}));
