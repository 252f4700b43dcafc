"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SETTINGS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];

  // Plotly reads markup in texts; a name is a name.
  const plain = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

  function element(tag, parent, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    parent.append(made);
    return made;
  }

  // An exponential moving average whose start is not drawn to zero; gaps stay gaps.
  function smooth(values, weight) {
    let mean = 0, sum = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      sum = weight * sum + (1 - weight);
      return mean / sum;
    });
  }

  const weight = () => Number(byId("smoothing")?.value ?? 0);

  function traces(curves, smoothed) {
    return curves.map((curve, i) => ({
      name: plain(curve.name), x: curve.x, y: smoothed ? smooth(curve.y, weight()) : curve.y,
      mode: curve.markers || curve.x.length < 2 ? "lines+markers" : "lines",
      line: { width: 1.5, color: COLOURS[i % COLOURS.length] }, marker: { size: 5 },
      hovertemplate: "%{y:.5g}<extra>%{fullData.name}</extra>",
    }));
  }

  function layout(title, log, more = {}) {
    return {
      title: { text: plain(title), font: { size: 14 }, x: 0.02 }, height: 330, margin: { l: 55, r: 15, t: 40, b: 40 },
      hovermode: "x", xaxis: { title: { text: "step" } }, yaxis: { type: log ? "log" : "linear", exponentformat: "power" },
      legend: { orientation: "h", y: -0.2, font: { size: 11 } }, showlegend: true, ...more,
    };
  }

  function lines(steps) {
    return (steps ?? []).map((step) => ({
      type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: "#888", width: 1, dash: "dot" },
    }));
  }

  function panels(place, found, smoothed) {
    if (!found.length) element("p", place, { textContent: "Nothing yet." });
    return found.map((panel) => {
      const plot = element("div", place);
      const log = { shapes: lines(data.restarts), updatemenus: scale(panel.log) };
      Plotly.newPlot(plot, traces(panel.traces, smoothed), layout(panel.title, panel.log, log), SETTINGS);
      return () => Plotly.restyle(plot, { y: traces(panel.traces, smoothed).map((t) => t.y) });
    });
  }

  function scale(log) {
    const button = (label, type) => ({ label, method: "relayout", args: [{ "yaxis.type": type, "yaxis.autorange": true }] });
    return [{
      type: "buttons", direction: "right", x: 1, xanchor: "right", y: 1.16, pad: { t: 0, b: 0 }, font: { size: 10 },
      active: log ? 1 : 0, buttons: [button("linear", "linear"), button("log", "log")],
    }];
  }

  function onSmoothing(update) {
    byId("smoothing").addEventListener("input", () => {
      byId("smoothed").textContent = weight().toFixed(2);
      update();
    });
  }

  // Cells are compared as numbers where both are; empty ones come last either way.
  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function sortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    const key = (row, i) => row.cells[i].dataset.sort ?? row.cells[i].textContent;
    heads.forEach((head, i) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].sort((r, s) => {
          const [a, b] = [key(r, i), key(s, i)];
          if (a === "" || b === "") return (a === "") - (b === "");
          return down ? compare(b, a) : compare(a, b);
        });
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }

  // One image of the sheet on a canvas of its own size.
  function shower(control, sheet, parent) {
    const canvas = element("canvas", parent, { className: "shown", width: control.width, height: control.height });
    return (row, column) => {
      canvas.dataset.at = `${row} ${column}`;
      canvas.getContext("2d").drawImage(
        sheet, column * control.width, row * control.height, control.width, control.height, 0, 0, control.width, control.height,
      );
    };
  }

  function plane(control, sheet, place) {
    const { side, low, high, points, labels } = control;
    const field = element("div", place, { className: "plane", tabIndex: 0 });
    field.setAttribute("role", "application");
    field.setAttribute("aria-label", "plane of codes: move with the pointer or the arrow keys");
    const back = element("canvas", field, { width: side * control.width, height: side * control.height });
    back.getContext("2d").drawImage(sheet, 0, 0);
    const front = element("canvas", field, { width: 832, height: 832 });
    const beside = element("div", place, { className: "side" });
    const show = shower(control, sheet, beside);
    const where = element("output", beside);
    const label = element("label", beside, { textContent: " codes of held-out images, by label" });
    const dots = element("input", label, { type: "checkbox" });
    label.prepend(dots);
    label.hidden = !points.length;
    let at = [(side - 1) / 2, (side - 1) / 2];

    // The codes lie at the middles of the images, the first and last half an image from the edge.
    const across = (u, axis) => low[axis] + ((u / (side - 1)) * (high[axis] - low[axis]));
    const inward = (value, axis) => ((value - low[axis]) / (high[axis] - low[axis])) * (side - 1);
    const pixel = (u) => ((u + 0.5) / side) * front.width;

    function draw() {
      const pen = front.getContext("2d");
      pen.clearRect(0, 0, front.width, front.height);
      if (dots.checked) {
        points.forEach(([x, y], i) => {
          pen.fillStyle = COLOURS[(labels[i] ?? 0) % COLOURS.length];
          pen.beginPath();
          pen.arc(pixel(inward(x, 0)), pixel(side - 1 - inward(y, 1)), 5, 0, 7);
          pen.fill();
        });
      }
      pen.strokeStyle = "#e0244e";
      pen.lineWidth = 3;
      pen.beginPath();
      pen.arc(pixel(at[0]), pixel(at[1]), 14, 0, 7);
      pen.stroke();
      show(Math.round(at[1]), Math.round(at[0]));
      where.textContent = `(${across(at[0], 0).toFixed(2)}, ${across(side - 1 - at[1], 1).toFixed(2)})`;
    }

    function move(x, y) {
      at = [x, y].map((u) => Math.min(side - 1, Math.max(0, u)));
      draw();
    }

    const follow = (event) => {
      const box = field.getBoundingClientRect();
      move(((event.clientX - box.left) / box.width) * side - 0.5, ((event.clientY - box.top) / box.height) * side - 0.5);
    };
    field.addEventListener("pointermove", follow);
    field.addEventListener("pointerdown", follow);
    field.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(Math.round(at[0]) + step[0], Math.round(at[1]) + step[1]);
    });
    dots.addEventListener("change", draw);
    draw();
  }

  function slider(control, sheet, place) {
    const shown = element("div", place, { className: "side" });
    const show = shower(control, sheet, shown);
    const beside = element("div", place, { className: "side" });
    const rows = element("select", beside);
    control.rows.forEach((name, i) => element("option", rows, { textContent: name, value: i }));
    const range = element("input", beside, { type: "range", min: 0, max: control.values.length - 1, step: 1, value: control.begin });
    const where = element("output", beside);
    const draw = () => {
      show(Number(rows.value), Number(range.value));
      where.textContent = control.values[Number(range.value)];
    };
    rows.addEventListener("change", draw);
    range.addEventListener("input", draw);
    draw();
  }

  function controls(place) {
    data.controls.forEach((control) => {
      const part = element("div", place, { className: "control" });
      element("h3", part, { textContent: control.title });
      const sheet = new Image();
      sheet.addEventListener("load", () => (control.kind === "plane" ? plane : slider)(control, sheet, part));
      sheet.src = control.sheet;
    });
  }

  function heat(place, map) {
    const ticks = (names) => ({ type: "category", tickvals: names.map((_, i) => i), ticktext: names.map(plain) });
    Plotly.newPlot(place, [{
      type: "heatmap", z: map.values, colorscale: "Viridis", reversescale: !map.larger, texttemplate: "%{z:.4g}", xgap: 2, ygap: 2,
      hovertemplate: "%{z:.6g}<extra></extra>",
    }], {
      title: { text: plain(data.objective), font: { size: 14 }, x: 0.02 }, height: 420, margin: { l: 70, r: 15, t: 40, b: 55 },
      xaxis: { ...ticks(map.columns), type: "linear", title: { text: plain(map.column) } },
      yaxis: { ...ticks(map.rows), type: "linear", autorange: "reversed", title: { text: plain(map.row) } },
    }, SETTINGS);
  }

  function parallel(place, axes) {
    const dimensions = axes.map(({ label, values, ticks }) => ({
      label: plain(label), values, ...(ticks ? { tickvals: ticks.map((_, i) => i), ticktext: ticks } : {}),
    }));
    const objective = axes[axes.length - 1].values;
    Plotly.newPlot(place, [{ type: "parcoords", dimensions, line: { color: objective, colorscale: "Viridis" } }], {
      title: { text: "parallel coordinates", font: { size: 14 }, x: 0.02 }, height: 420, margin: { l: 60, r: 60, t: 90, b: 30 },
    }, SETTINGS);
  }

  function overlaid(place, choice) {
    Object.keys(data.curves).forEach((name) => element("option", choice, { textContent: name, value: name }));
    if (data.objective in data.curves) choice.value = data.objective;
    const draw = () => {
      const found = data.curves[choice.value];
      const log = found.every((curve) => curve.y.every((y) => y === null || y > 0));
      const more = { height: 480, hovermode: "closest", updatemenus: scale(log), showlegend: false };
      Plotly.react(place, traces(found, true), layout(choice.value, log, more), SETTINGS);
    };
    choice.addEventListener("change", draw);
    onSmoothing(draw);
    if (choice.value) draw();
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  if (byId("training")) {
    const updates = panels(byId("training"), data.training, true);
    onSmoothing(() => updates.forEach((update) => update()));
    panels(byId("evaluated"), data.evaluations, false);
    controls(byId("controls"));
  } else {
    if (data.heat) heat(byId("heat"), data.heat);
    if (data.parallel) parallel(byId("parallel"), data.parallel.axes);
    overlaid(byId("overlaid"), byId("metric"));
  }
})();
