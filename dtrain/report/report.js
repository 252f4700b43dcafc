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

  // Test is a cross in the colour of what it belongs to.
  function traces(curves, smoothed) {
    const names = [...new Set(curves.map((curve) => curve.name))];
    return curves.map((curve) => ({
      name: plain(curve.name), x: curve.x, y: smoothed ? smooth(curve.y, weight()) : curve.y,
      mode: curve.test ? "markers" : curve.markers || curve.x.length < 2 ? "lines+markers" : "lines",
      line: { width: 1.5, color: COLOURS[names.indexOf(curve.name) % COLOURS.length] },
      marker: { size: curve.test ? 9 : 5, symbol: curve.test ? "x" : "circle", color: COLOURS[names.indexOf(curve.name) % COLOURS.length] },
      showlegend: !curve.test,
      hovertemplate: `%{y:.5g}<extra>${plain(curve.name)}${curve.test ? ", test" : ""}</extra>`,
    }));
  }

  // entries: of the legend, which is below the plot and takes its own height.
  function layout(title, log, width, entries, more = {}) {
    const rows = entries > 1 ? Math.ceil(entries / Math.max(1, Math.floor((width - 70) / 95))) : 0;
    return {
      title: { text: plain(title), font: { size: 14 }, x: 0.02 }, height: 300 + 19 * rows,
      margin: { l: 55, r: 15, t: 40, b: 30 }, hovermode: "x", xaxis: { hoverformat: ",d" },
      yaxis: { type: log ? "log" : "linear", exponentformat: "power" }, showlegend: rows > 0,
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", entrywidth: 80, font: { size: 11 } }, ...more,
    };
  }

  function lines(steps) {
    return (steps ?? []).map((step) => ({
      type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: "#888", width: 1, dash: "dot" },
    }));
  }

  // Draws what is near the window, and the rest once it comes near.
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      target.draw();
    }
  }, { rootMargin: "300px" });

  function later(place, draw) {
    place.draw = draw;
    near.observe(place);
  }

  function panels(place, found, smoothed) {
    if (!found.length) element("p", place, { textContent: "Nothing yet." });
    return found.map((panel) => {
      const plot = element("div", place, { className: "plot" });
      const entries = panel.traces.filter((curve) => !curve.test).length;
      later(plot, () => {
        const more = { shapes: lines(data.restarts), updatemenus: scale(panel.log) };
        const about = layout(panel.title, panel.log, plot.clientWidth, entries, more);
        Plotly.newPlot(plot, traces(panel.traces, smoothed), about, SETTINGS);
      });
      return () => plot.data && Plotly.restyle(plot, { y: traces(panel.traces, smoothed).map((t) => t.y) });
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
    const { side, low, high, points, labels, classes } = control;
    const colour = (label) => COLOURS[(label ?? 0) % COLOURS.length];
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
    const legend = element("div", beside, { className: "legend", hidden: true });
    for (const one of [...new Set(labels)].sort((a, b) => a - b)) {
      element("span", legend, { textContent: `● ${classes[one] ?? one}` }).style.color = colour(one);
    }
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
          pen.fillStyle = colour(labels[i]);
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
    dots.addEventListener("change", () => {
      legend.hidden = !dots.checked;
      draw();
    });
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
    const axis = (name, values) => ({
      tickvals: values.map((_, i) => i), ticktext: values.map(plain), title: { text: plain(name), standoff: 12 },
      automargin: true, showgrid: false, zeroline: false,
    });
    const [row, column] = map.best;
    Plotly.newPlot(place, [{
      type: "heatmap", z: map.values, colorscale: "Viridis", reversescale: !data.larger, texttemplate: "%{z:.4g}", xgap: 2, ygap: 2,
      hovertemplate: "%{z:.6g}<extra></extra>",
    }], {
      title: { text: plain(`${data.objective}, best framed`), font: { size: 14 }, x: 0.02 }, height: 420,
      margin: { l: 40, r: 15, t: 40, b: 40 }, plot_bgcolor: "#eef0f2", xaxis: axis(map.column, map.columns),
      yaxis: { ...axis(map.row, map.rows), autorange: "reversed" }, shapes: [{
        type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color: "#e0244e", width: 3 },
      }],
    }, SETTINGS);
  }

  function parallel(place, axes) {
    const dimensions = axes.map(({ label, values, ticks }) => ({
      label: plain(label), values, ...(ticks ? { tickvals: ticks.map((_, i) => i), ticktext: ticks } : {}),
    }));
    const line = { color: axes[axes.length - 1].values, colorscale: "Viridis", reversescale: !data.larger };
    Plotly.newPlot(place, [{ type: "parcoords", dimensions, line }], {
      title: { text: "Drag along an axis to select settings", font: { size: 14 }, x: 0.02 }, height: 420,
      margin: { l: 60, r: 60, t: 90, b: 30 },
    }, SETTINGS);
  }

  function overlaid(place, choice) {
    Object.keys(data.curves).forEach((name) => element("option", choice, { textContent: name, value: name }));
    if (data.objective in data.curves) choice.value = data.objective;
    const draw = () => {
      const found = data.curves[choice.value];
      const values = found.flatMap((curve) => curve.y.filter((y) => y !== null));
      const log = values.every((y) => y > 0) && Math.max(...values) > 20 * Math.min(...values);
      const more = { height: 480, hovermode: "closest", updatemenus: scale(log) };
      Plotly.react(place, traces(found, true), layout(choice.value, log, 0, 0, more), SETTINGS);
    };
    choice.addEventListener("change", draw);
    onSmoothing(draw);
    if (choice.value) later(place, draw);
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  if (byId("training")) {
    const updates = panels(byId("training"), data.training, true);
    onSmoothing(() => updates.forEach((update) => update()));
    panels(byId("evaluated"), data.evaluations, false);
    controls(byId("controls"));
  } else {
    if (data.heat) later(byId("heat"), () => heat(byId("heat"), data.heat));
    if (data.parallel) later(byId("parallel"), () => parallel(byId("parallel"), data.parallel));
    overlaid(byId("overlaid"), byId("metric"));
  }
})();
