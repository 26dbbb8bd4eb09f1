// The map of instructions: how it is coloured, what is under the mouse, and which row a click opens.
(function (refed) {
  "use strict";

  /**
   * @param {(row: number) => string} describe a row for people.
   * @param {(row: number) => void} open called with the row of a point that was clicked.
   */
  refed.follow = function (describe, open) {
    for (const map of document.querySelectorAll(".dots")) {
      // Screen readers get the same from the list; this follows the mouse.
      const readout = map.querySelector(".readout");
      const rowOf = ({ target }) => (target.tagName === "path" ? Array.prototype.indexOf.call(target.parentNode.children, target) : -1);
      map.addEventListener("change", ({ target }) => (map.dataset.by = target.value));
      map.addEventListener("pointerover", (event) => {
        const row = rowOf(event);
        if (row >= 0) readout.textContent = describe(row);
      });
      map.addEventListener("click", (event) => {
        const row = rowOf(event);
        if (row >= 0) open(row);
      });
    }
  };
})((globalThis.refed ??= {}));
