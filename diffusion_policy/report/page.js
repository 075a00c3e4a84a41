"use strict";
// Draws the figures in the colors of the reader's theme, and runs the replays. Data is in elements "data-...".

const dark = matchMedia("(prefers-color-scheme: dark)");
const read = (name) => JSON.parse(document.getElementById(`data-${name}`)?.textContent ?? "{}");

function themed(layout, isDark) {
  const [ink, lines] = isDark ? ["#d5dae0", "#3a424c"] : ["#2a3037", "#dfe3e8"];
  const axis = { gridcolor: lines, zerolinecolor: lines, linecolor: lines };
  const out = { ...layout, font: { color: ink, family: "system-ui, sans-serif", size: 12 } };
  out.paper_bgcolor = out.plot_bgcolor = "rgba(0,0,0,0)";
  out.template = {};
  out.modebar = { bgcolor: "rgba(0,0,0,0)", color: ink };
  out.hoverlabel = { bgcolor: isDark ? "#262c34" : "#ffffff", font: { color: ink } };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis/.test(key)) out[key] = { ...layout[key], ...axis, automargin: true };
  }
  if (layout.scene) {
    out.scene = { ...layout.scene };
    for (const key of ["xaxis", "yaxis", "zaxis"]) {
      out.scene[key] = { ...layout.scene[key], ...axis, color: ink, backgroundcolor: "rgba(0,0,0,0)" };
    }
  }
  return out;
}

const figures = read("figures");

// The boxes of a map hold the names of their colors, which the style sheet defines.
function colored(trace) {
  if (trace.type !== "treemap") return trace;
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const marker = { ...trace.marker, colors: trace.customdata.map(color), line: { ...trace.marker.line, color: color("between") } };
  const textfont = { ...trace.textfont, color: trace.customdata.map((name) => color(`on-${name}`)) };
  return { ...trace, marker, textfont };
}

// Room above a figure for as many rows as its legend takes at this width, so that it does not cover the title.
function withLegend(layout, data, width) {
  const names = data.filter((trace) => trace.name && trace.type !== "heatmap").map((trace) => trace.name);
  if (names.length < 2 || layout.showlegend === false || layout.scene || !layout.margin) return layout;
  const widest = 46 + 6.2 * Math.max(...names.map((name) => name.length));
  const columns = Math.max(1, Math.floor((width - layout.margin.l - layout.margin.r) / widest));
  return { ...layout, margin: { ...layout.margin, t: 44 + 19 * Math.ceil(names.length / columns) } };
}

function draw(isDark, paper = false) {
  document.documentElement.classList.toggle("printing", paper);
  // "Share" would send the data of the figure to a server.
  const removed = ["lasso2d", "select2d", "sendChartToCloud"];
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: removed, plotlyServerURL: "" };
  const drawn = Object.entries(figures).map(([name, figure]) => {
    const width = document.getElementById(name).clientWidth;
    const layout = withLegend(themed(figure.layout, isDark), figure.data, width);
    if (paper) layout.width = width;
    return Plotly.react(name, figure.data.map(colored), layout, options);
  });
  return Promise.all(drawn).then(() => { document.documentElement.dataset.figures = drawn.length; });
}

draw(dark.matches);
dark.addEventListener("change", () => draw(dark.matches));
addEventListener("beforeprint", () => draw(false, true));
addEventListener("afterprint", () => draw(dark.matches));

// ---- replay ----------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const PREDICTED = "#2f86d1", MEASURED = "#e07b1a", RECORDED = "#8b929c";

function shape(parent, kind, attributes) {
  const element = document.createElementNS(SVG, kind);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

const pointsOf = (list) => list.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

// A panel that shows two of the three coordinates at one scale that fits everything shown.
function panel(svg, data, box, axes, title) {
  const [a, b] = axes;
  const all = [...data.positions, ...data.chunks.flat()];
  const span = (i) => [Math.min(...all.map((p) => p[i])), Math.max(...all.map((p) => p[i]))];
  const [lowA, highA] = span(a), [lowB, highB] = span(b);
  const scale = Math.min((box.width - 24) / Math.max(highA - lowA, 0.02), (box.height - 44) / Math.max(highB - lowB, 0.02));
  const project = (p) => [
    box.x + box.width / 2 + (p[a] - (lowA + highA) / 2) * scale,
    box.y + 12 + box.height / 2 - (p[b] - (lowB + highB) / 2) * scale,
  ];
  shape(svg, "rect", { ...box, fill: "none", stroke: "currentColor", "stroke-opacity": 0.25, rx: 6 });
  const text = shape(svg, "text", { x: box.x + 10, y: box.y + 17, fill: "currentColor", "font-size": 13 });
  text.textContent = title;
  const tenth = scale * 0.1, right = box.x + box.width - 12, low = box.y + box.height - 10;
  if (tenth > 12 && tenth < box.width / 2) {
    shape(svg, "line", { x1: right - tenth, x2: right, y1: low, y2: low, stroke: "currentColor", "stroke-width": 2 });
    const mark = shape(svg, "text", { x: right - tenth, y: low - 5, fill: "currentColor", "font-size": 11 });
    mark.textContent = "10 cm";
  }
  shape(svg, "polyline", { points: pointsOf(data.positions.map(project)), fill: "none", stroke: RECORDED, "stroke-width": 2 });
  const chunk = shape(svg, "polyline", { fill: "none", stroke: PREDICTED, "stroke-width": 2.5 });
  const dots = data.chunks[0].map(() => shape(svg, "circle", { r: 3.6, stroke: PREDICTED, "stroke-width": 1.6 }));
  const arm = shape(svg, "circle", { r: 6, fill: "none", stroke: "currentColor", "stroke-width": 2.5 });
  return (step) => {
    const way = data.chunks[step].map(project), [x, y] = project(data.positions[step]);
    chunk.setAttribute("points", pointsOf([[x, y], ...way]));
    dots.forEach((dot, i) => {
      const open = !data.grippers || data.grippers[step][i] > 0.5;
      dot.setAttribute("cx", way[i][0]);
      dot.setAttribute("cy", way[i][1]);
      dot.setAttribute("fill", open ? "transparent" : PREDICTED);
    });
    arm.setAttribute("cx", x);
    arm.setAttribute("cy", y);
  };
}

// The gripper over time: commanded, measured and recorded, with a cursor.
function strip(svg, data, box) {
  const count = data.positions.length;
  const at = (i, value) => [
    box.x + (count > 1 ? (i / (count - 1)) * box.width : 0),
    box.y + box.height - 8 - value * (box.height - 30),
  ];
  shape(svg, "rect", { ...box, fill: "none", stroke: "currentColor", "stroke-opacity": 0.25, rx: 6 });
  const text = shape(svg, "text", { x: box.x + 10, y: box.y + 15, fill: "currentColor", "font-size": 12 });
  text.textContent = data.grippers ? "gripper (top: open)" : "no gripper command";
  const lines = [[data.recorded, RECORDED, 4], [data.measured, MEASURED, 1.5], [data.grippers?.map((g) => g[0]), PREDICTED, 2]];
  for (const [values, stroke, width] of lines) {
    if (values) {
      const points = pointsOf(values.map((value, i) => at(i, value)));
      shape(svg, "polyline", { points, fill: "none", stroke, "stroke-width": width });
    }
  }
  const cursor = shape(svg, "line", { y1: box.y, y2: box.y + box.height, stroke: "currentColor", "stroke-width": 1.5 });
  return (step) => {
    const [x] = at(step, 0);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  };
}

function spoken(data, step) {
  const [x, y, z] = data.positions[step].map((v) => v.toFixed(3));
  const time = data.seconds ? `, ${data.seconds[step].toFixed(1)} s` : "";
  const texts = [`step ${data.steps[step]} of ${data.total}${time}`, `arm at ${x}, ${y}, ${z} m`];
  if (data.grippers) {
    const command = data.grippers[step][0];
    const state = command >= 0.7 ? "open" : command <= 0.3 ? "closed" : "undecided";
    texts.push(`gripper command ${command.toFixed(2)} (${state})`);
    if (data.recorded) texts.push(`recorded ${data.recorded[step].toFixed(0)}`);
    else if (data.measured) texts.push(`measured ${data.measured[step].toFixed(2)}`);
  }
  return texts.join("; ");
}

// The frame of each camera, stacked; "no frame" where a step has none.
function framesOf(holder, data) {
  const named = data.cameras.length > 1;
  const places = (data.cameras.length ? data.cameras : [""]).map((camera) => {
    const figure = document.createElement("figure"), image = document.createElement("img");
    image.alt = `camera frame of ${holder.dataset.title}${named ? `, ${camera},` : ""} at the step of the slider`;
    const none = document.createElement("div");
    none.className = "noframe";
    none.textContent = "no frame";
    figure.append(image, none);
    if (named) figure.append(Object.assign(document.createElement("figcaption"), { textContent: camera }));
    holder.append(figure);
    return [image, none];
  });
  return (step) => places.forEach(([image, none], i) => {
    const frame = data.frames[step][i];
    image.hidden = !frame;
    none.hidden = Boolean(frame);
    if (frame) image.src = frame;
  });
}

function replay(root, data) {
  const [slider, button, readout] = ["input", "button", "output"].map((kind) => root.querySelector(kind));
  const showFrames = framesOf(root.querySelector(".cameras"), data);
  const svg = shape(root.querySelector(".views"), "svg", { viewBox: "0 0 640 420", role: "img", "aria-label": root.dataset.views });
  const updates = [
    panel(svg, data, { x: 1, y: 1, width: 314, height: 300 }, [0, 1], "from above (x right, y up)"),
    panel(svg, data, { x: 325, y: 1, width: 314, height: 300 }, [0, 2], "from the side (x right, z up)"),
    strip(svg, data, { x: 1, y: 312, width: 638, height: 106 }),
  ];
  let timer = null;
  const show = () => {
    const step = Number(slider.value);
    updates.forEach((update) => update(step));
    showFrames(step);
    readout.value = spoken(data, step);
    slider.setAttribute("aria-valuetext", readout.value);
    root.dataset.step = step;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  slider.max = data.positions.length - 1;
  slider.addEventListener("input", show);
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 150);
  });
  show();
}

const replays = read("replays");
for (const root of document.querySelectorAll(".replay-one")) replay(root, replays[root.dataset.replay]);
for (const select of document.querySelectorAll("select.which")) {
  const choose = () => {
    for (const root of document.querySelectorAll(".replay-one")) root.hidden = root.dataset.replay !== select.value;
  };
  select.addEventListener("change", choose);
  choose();
}
