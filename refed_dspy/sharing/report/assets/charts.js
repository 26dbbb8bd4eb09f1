// The charts: Plotly draws what Python counted, in the page's colours, when a chart is about to come into view.
(function (refed) {
  "use strict";

  const CONFIG = { responsive: true, displayModeBar: false, displaylogo: false, showLink: false, scrollZoom: false };

  /** All charts of the page. */
  refed.Charts = class {
    /**
     * @param {object} figures by id: {data, layout}; a figure without a place on the page is left out, as is a place
     *   without a figure.
     * @param {(row: number) => void} open called with the row of a point that was clicked.
     */
    constructor(figures, open) {
      this.open = open;
      this.describe = () => "";
      this.probe = document.getElementById("probe");
      this.charts = new Map();
      this.observer = new IntersectionObserver((seen) => this.seen(seen), { rootMargin: "300px" });
      for (const place of document.querySelectorAll(".chart")) {
        const figure = figures[place.id.slice("chart-".length)];
        if (!figure) this.missing(place);
        else this.add(place, figure);
      }
    }

    add(place, figure) {
      // The height is set before drawing: what is below must not jump.
      place.style.height = `${figure.layout.height ?? 320}px`;
      const colourings = figure.layout.meta?.colourings ?? [];
      const chart = { place, figure, drawn: false, visible: null };
      if (colourings.length) chart.visible = visibleOf(figure, colourings[0]);
      if (colourings.length > 1) place.before(this.choice(chart, colourings));
      this.charts.set(place, chart);
      this.observer.observe(place);
    }

    missing(place) {
      place.removeAttribute("role");
      place.removeAttribute("aria-label");
      place.replaceChildren(refed.make("p", "none", "There is nothing to draw."));
      place.classList.add("empty");
    }

    seen(entries) {
      for (const { target, isIntersecting } of entries) if (isIntersecting) this.draw(this.charts.get(target));
    }

    /** Draws what was not in view yet as well: for paper. */
    drawAll() {
      for (const chart of this.charts.values()) this.draw(chart);
    }

    /** Puts the page's present colours into the charts that are drawn. */
    recolour() {
      for (const chart of this.charts.values()) {
        if (chart.drawn) globalThis.Plotly.react(chart.place, this.data(chart), this.layout(chart.figure), CONFIG);
      }
    }

    draw(chart) {
      this.observer.unobserve(chart.place);
      if (chart.drawn) return;
      chart.drawn = true;
      globalThis.Plotly.newPlot(chart.place, this.data(chart), this.layout(chart.figure), CONFIG);
      if (!opens(chart.figure)) return;
      const readout = refed.make("p", "readout");
      readout.dir = "auto";
      // Screen readers get the same from the list; this follows the mouse.
      readout.setAttribute("aria-hidden", "true");
      chart.place.after(readout);
      chart.place.on("plotly_hover", ({ points }) => (readout.textContent = this.describe(rowOf(points))));
      chart.place.on("plotly_click", ({ points }) => this.open(rowOf(points)));
    }

    data(chart) {
      if (!chart.visible) return chart.figure.data;
      return chart.figure.data.map((trace, i) => ({ ...trace, visible: chart.visible[i] }));
    }

    colour(name) {
      // A variable's value is only a formula (light-dark()); a colour that is in use is a colour.
      this.probe.style.color = `var(${name})`;
      return getComputedStyle(this.probe).color;
    }

    layout(figure) {
      const [ink, muted, line, surface] = ["--ink", "--muted", "--line", "--surface"].map((name) => this.colour(name));
      const { layout } = figure;
      const shown = {
        // A finger that drags wants to scroll the page.
        dragmode: opens(figure) && matchMedia("(pointer: fine)").matches ? "zoom" : false,
        ...layout,
        margin: { t: 12, r: 16, b: 44, l: 56, ...layout.margin },
        legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, ...layout.legend },
        autosize: true,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: "system-ui, sans-serif", size: 12, color: ink },
        hoverlabel: { bgcolor: surface, bordercolor: muted, font: { color: ink } },
      };
      const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
      for (const axis of new Set(["xaxis", "yaxis", ...axes])) {
        shown[axis] = { automargin: true, ...layout[axis], gridcolor: line, zerolinecolor: line };
      }
      return shown;
    }

    choice(chart, colourings) {
      const set = refed.make("fieldset", "switch");
      set.append(refed.make("legend", "", "Colour by"));
      colourings.forEach((colouring, i) => {
        const label = refed.make("label");
        const radio = refed.make("input");
        const name = `${chart.place.id}-colour`;
        Object.assign(radio, { type: "radio", name, value: colouring.label, checked: i === 0 });
        radio.addEventListener("change", () => {
          chart.visible = visibleOf(chart.figure, colouring);
          if (chart.drawn) globalThis.Plotly.restyle(chart.place, { visible: chart.visible });
        });
        label.append(radio, refed.make("span", "", colouring.label));
        set.append(label);
      });
      return set;
    }
  };

  function visibleOf(figure, colouring) {
    const shown = new Set(colouring.traces);
    return figure.data.map((_, i) => shown.has(i));
  }

  /** Whether a figure's points are rows, which a click opens. */
  function opens(figure) {
    return figure.data.some((trace) => trace.customdata);
  }

  function rowOf(points) {
    const { customdata } = points[0];
    return Array.isArray(customdata) ? customdata[0] : customdata;
  }
})((globalThis.refed ??= {}));
