// Line charts as SVG, drawn from the JSON in the page: crosshair on all, log scale, smoothing, steps or tokens.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("bigtrain-data").textContent);
  const state = { axis: "step", smooth: 0, hidden: new Set() };
  const one = data.runs.length === 1;

  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  }

  function short(v) {
    const size = Math.abs(v);
    for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (size >= scale * 0.9995) return +(v / scale).toPrecision(3) + letter;
    return size !== 0 && size < 1e-3 ? v.toExponential(1).replace(".0e", "e") : String(+v.toPrecision(4));
  }
  const said = {
    "": short,
    percent: (v) => +(v * 100).toPrecision(3) + " %",
    bytes: (v) => (v >= 2 ** 30 ? +(v / 2 ** 30).toPrecision(3) + " GiB" : +(v / 2 ** 20).toPrecision(3) + " MiB"),
    seconds: (v) => (v >= 1 ? +v.toPrecision(3) + " s" : v >= 1e-3 || v === 0 ? +(v * 1e3).toPrecision(3) + " ms" : +(v * 1e6).toPrecision(3) + " µs"),
  };
  const exact = (v, unit) => (unit ? said[unit](v) : Math.abs(v) >= 1e5 ? short(v) : String(+v.toPrecision(5)));

  function ticks(low, high, count, unit) {
    const base = unit === "bytes" ? 2 ** (10 * Math.floor(Math.log2(Math.max(high, 1)) / 10)) : 1;
    const raw = (high - low) / base / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power * base;
    const list = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) list.push(i * step);
    return list;
  }
  function logTicks(low, high) {
    const list = [], decades = high - low, digits = decades > 3 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    for (let p = Math.floor(low); p <= high; p++)
      for (const digit of digits) if (Math.log10(digit) + p >= low && Math.log10(digit) + p <= high) list.push(digit * 10 ** p);
    return list.length > 1 ? list.filter((_, i) => i % Math.ceil(list.length / 8) === 0) : [10 ** low, 10 ** high];
  }

  // exponential moving average from both ends: no bias at the start, and it does not lag behind a falling loss
  function smoothed(values, weight) {
    const average = (list) => {
      let mean = 0, norm = 0;
      return list.map((v) => ((mean = weight * mean + (1 - weight) * v), (norm = weight * norm + 1 - weight), mean / norm));
    };
    const forward = average(values), backward = average([...values].reverse()).reverse();
    return forward.map((v, i) => (v + backward[i]) / 2);
  }

  class Chart {
    constructor(figure, spec) {
      const positive = spec.series.every((s) => s.value.every((v) => v > 0));
      Object.assign(this, { figure, spec, log: positive && spec.scale === "log" });
      this.svg = add(figure, "svg", { role: "img" });
      this.tip = figure.appendChild(document.createElement("div"));
      this.tip.className = "tip";
      if (positive && spec.series.some((s) => s.value.length > 1)) {
        const button = figure.querySelector("figcaption").appendChild(document.createElement("button"));
        button.textContent = "log";
        button.type = "button";
        button.setAttribute("aria-pressed", this.log);
        button.onclick = () => { this.log = !this.log; button.setAttribute("aria-pressed", this.log); this.draw(); };
      }
      this.svg.addEventListener("pointermove", (event) => this.hover(event));
      this.svg.addEventListener("pointerleave", () => charts.forEach((chart) => chart.cross(null)));
    }

    draw() {
      const { svg, spec } = this, width = Math.max(this.figure.clientWidth, 240);
      const height = Math.round(this.figure.matches(":first-child") ? Math.min(width * 0.4, 380) + 40 : Math.max(Math.min(width * 0.45, 240), 170) + 20);
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const shown = spec.series.filter((s) => !state.hidden.has(s.run));
      this.series = shown.map((s) => {
        const smooth = s.split === "train" && state.smooth > 0 && s.value.length > 3 && spec.smooth;
        return { ...s, x: s[state.axis] || s.step, y: smooth ? smoothed(s.value, state.smooth) : s.value, smooth };
      });
      const all = (key) => this.series.flatMap((s) => s[key]), xs = all("x").concat(this.series.flatMap((s) => s.bad.map((b) => (state.axis === "tokens" ? b[1] : b[0]) ?? b[0])));
      const f = this.log ? Math.log10 : (v) => v, ys = all("value").map(f);
      let [x0, x1] = xs.length ? [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))] : [0, 1];
      let [y0, y1] = ys.length ? [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))] : [0, 1];
      if (x0 > 0 && x0 < x1 * 0.1) x0 = 0;
      if (x1 === x0) [x0, x1] = [x0 - 1, x1 + 1];
      if (!this.log && y0 > 0 && (spec.scale === "zero" || y0 < (y1 - y0) * 0.3)) y0 = 0;
      if (y1 - y0 < 1e-12 + Math.abs(y1) * 1e-9) [y0, y1] = this.log ? [y0 - 0.5, y1 + 0.5] : y1 === 0 ? [0, 1] : y1 > 0 ? [0, y1 * 1.25] : [y0 * 1.25, 0];
      const pad = (y1 - y0) * 0.05;
      y1 += pad;
      if (y0 !== 0 || this.log) y0 -= pad;
      const yTicks = this.log ? logTicks(y0, y1) : ticks(y0, y1, height / 55, spec.unit);
      const labels = yTicks.map(said[spec.unit]);
      const left = 14 + 6.6 * Math.max(...labels.map((label) => label.length)), right = 14, top = 10, bottom = 24;
      const px = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
      const py = (v) => height - bottom - ((f(v) - y0) / (y1 - y0)) * (height - top - bottom);
      Object.assign(this, { px, py, top, bottom, height, width, left, right });

      const grid = add(svg, "g", { class: "grid" });
      yTicks.forEach((v, i) => {
        add(grid, "line", { x1: left, x2: width - right, y1: py(v), y2: py(v) });
        add(grid, "text", { x: left - 7, y: py(v) + 4, "text-anchor": "end" }, labels[i]);
      });
      for (const v of ticks(x0, x1, width / 90)) if (state.axis === "tokens" || Number.isInteger(v))
        add(grid, "text", { x: px(v), y: height - 6, "text-anchor": px(v) > width - 30 ? "end" : "middle" }, short(v));

      for (const s of this.series) {
        const colour = `c${(one && s.split === "eval" ? 1 : s.run) % 8}`, dashed = !one && s.split === "eval" && spec.series.some((o) => o.split === "train");
        const path = (values) => s.x.map((v, i) => (i ? "L" : "M") + px(v).toFixed(1) + " " + py(values[i]).toFixed(1)).join("");
        if (s.smooth) add(svg, "path", { class: `line faint ${colour}`, d: path(s.value) });
        add(svg, "path", { class: `line ${colour}${dashed ? " dashed" : ""}`, d: path(s.y) });
        if (s.x.length <= (s.split === "eval" ? 60 : 1)) s.x.forEach((v, i) => add(svg, "circle", { class: colour, cx: px(v), cy: py(s.y[i]), r: 3.2 }));
        for (const [step, tokens, word] of s.bad) {
          const x = px(state.axis === "tokens" ? tokens ?? step : step), mark = add(svg, "path", { class: "bad", d: `M${x - 4} ${top}l8 8m0 -8l-8 8` });
          add(mark, "title", {}, `${word} at step ${step}`);
        }
      }
      const last = this.series.map((s) => s.y.length && `${data.runs[s.run]} ${s.split}: ${exact(s.y[0], spec.unit)} to ${exact(s.y[s.y.length - 1], spec.unit)}`);
      svg.setAttribute("aria-label", `${spec.title}. ${last.filter(Boolean).join("; ")}`);
      this.overlay = add(svg, "g", { class: "overlay" });
    }

    nearest(s, x) {
      let low = 0, high = s.x.length - 1;
      while (high - low > 1) { const middle = (low + high) >> 1; if (s.x[middle] < x) low = middle; else high = middle; }
      return x - s.x[low] < s.x[high] - x ? low : high;
    }

    hover(event) {
      const box = this.svg.getBoundingClientRect(), scale = this.width / box.width;
      const spot = (event.clientX - box.left) * scale;
      const candidates = this.series.filter((s) => s.x.length).map((s) => s.x[this.nearest(s, this.value(spot))]);
      if (!candidates.length) return;
      const x = candidates.reduce((a, b) => (Math.abs(this.px(a) - spot) <= Math.abs(this.px(b) - spot) ? a : b));
      charts.forEach((chart) => chart.cross(x, chart === this));
    }

    value(spot) {
      const zero = this.px(0), slope = this.px(1) - zero;
      return (spot - zero) / slope;
    }

    cross(x, tip) {
      this.overlay.replaceChildren();
      this.tip.style.display = "none";
      if (x === null) return;
      const px = this.px(x);
      if (px < this.left - 1 || px > this.width - this.right + 1) return;
      add(this.overlay, "line", { x1: px, x2: px, y1: this.top, y2: this.height - this.bottom });
      this.tip.replaceChildren();
      const head = this.tip.appendChild(document.createElement("b"));
      head.textContent = (state.axis === "step" ? "step " : "") + x.toLocaleString("en") + (state.axis === "tokens" ? ` ${axis.options[1].text}` : "");
      for (const s of this.series) {
        if (!s.x.length) continue;
        const i = this.nearest(s, x), colour = `c${(one && s.split === "eval" ? 1 : s.run) % 8}`;
        if (Math.abs(this.px(s.x[i]) - px) < 3) add(this.overlay, "circle", { class: colour, cx: this.px(s.x[i]), cy: this.py(s.y[i]), r: 4 });
        const row = this.tip.appendChild(document.createElement("div"));
        row.appendChild(document.createElement("i")).className = `swatch ${colour}`;
        const name = (one ? "" : data.runs[s.run] + " ") + (s.split === "train" ? "train" : "held out");
        row.append(`${name} `, Object.assign(document.createElement("b"), { textContent: exact(s.value[i], this.spec.unit) }));
        if (s.smooth) row.append(` (smooth ${exact(s.y[i], this.spec.unit)})`);
        if (s.x[i] !== x) row.append(` at ${short(s.x[i])}`);
      }
      if (!tip) return;
      this.tip.style.display = "block";
      const scale = this.figure.clientWidth / this.width, wide = this.tip.offsetWidth, at = px * scale + 14;
      this.tip.style.left = `${Math.max(4, at + wide > this.figure.clientWidth ? px * scale - wide - 14 : at)}px`;
    }
  }

  const charts = [...document.querySelectorAll("figure[data-chart]")].map((f) => new Chart(f, data.charts[f.dataset.chart]));
  const redraw = () => charts.forEach((chart) => chart.draw());
  const axis = document.getElementById("axis"), smooth = document.getElementById("smooth"), legend = document.getElementById("legend");
  if (axis) {
    axis.parentNode.hidden = data.charts.some((c) => c.series.some((s) => !s.tokens));
    axis.onchange = () => { state.axis = axis.value; redraw(); };
    smooth.oninput = () => { state.smooth = +smooth.value; redraw(); };
    new ResizeObserver(redraw).observe(document.querySelector(".plots"));
  }
  if (legend) data.runs.forEach((label, index) => {
    const key = legend.appendChild(document.createElement("button"));
    key.className = "key";
    key.type = "button";
    key.setAttribute("aria-pressed", "true");
    key.appendChild(document.createElement("i")).className = `swatch c${index % 8}`;
    key.append(label);
    key.onclick = () => {
      const hide = !state.hidden.has(index);
      state.hidden[hide ? "add" : "delete"](index);
      key.setAttribute("aria-pressed", !hide);
      redraw();
    };
  });
  redraw();
})();
