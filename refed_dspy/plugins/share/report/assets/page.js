// What every page needs: its data, elements that hold texts as texts, counts, the theme.
(function (refed) {
  "use strict";

  /**
   * Data from the text in the page: base64 of gzip of JSON.
   * @param {string} text
   * @returns {Promise<object>} rejects if the page was cut or altered.
   */
  refed.decode = async function (text) {
    const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text.trim()) : bytesOf(atob(text.trim()));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };

  function bytesOf(binary) {
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  /** An element with a class and a text. Every text that came with the data goes through here or `marked`. */
  refed.make = function (tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const number = new Intl.NumberFormat("en");

  /** A count with separators. */
  refed.count = (value) => number.format(value);

  /** Lets the switch choose between light and dark. */
  refed.theme = function () {
    for (const radio of document.querySelectorAll("input[name=theme]")) {
      radio.addEventListener("change", () => (document.documentElement.dataset.theme = radio.value));
    }
  };
})((globalThis.refed ??= {}));
