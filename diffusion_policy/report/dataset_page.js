"use strict";
// Episodes of datasets: the list, the selected one, and marks. `read`, `shape`, `panel`, `pointsOf` are from page.js.

const dataset = read("dataset");
const shownNumbers = new Set(dataset.shown), marked = new Set();
const part = (selector) => document.querySelector(`#episodes ${selector}`);
const list = part(".list"), slider = part(".player input"), playButton = part(".play"), readout = part("output");
const markButton = part(".mark"), saveButton = part(".save"), filter = part(".filter");
let current = 0, view = null, updates = [], playing = null, saved = true;

function add(parent, kind, text, name) {
  const element = parent.appendChild(document.createElement(kind));
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

// ---- the list --------------------------------------------------------------------------------------------------------

const troubled = (episode) => episode.level === "error" || episode.level === "warning";
const kept = {
  all: () => true,
  found: (number) => troubled(dataset.episodes[number]),
  failed: (number) => dataset.episodes[number].success === false,
  driven: (number) => dataset.episodes[number].driven > 0,
  marked: (number) => marked.has(number),
  shown: (number) => shownNumbers.has(number),
};
const titleOf = (number) => `${number} ${dataset.episodes[number].name}`;

function factsOf(episode) {
  const facts = [`${episode.steps} steps`];
  if (episode.seconds !== null) facts.push(`${episode.seconds} s`);
  if (episode.events) facts.push(`${episode.events} gripper events`);
  if (dataset.tasks[episode.task]) facts.push(dataset.tasks[episode.task]);
  if (episode.success !== null) facts.push(episode.success ? "success" : "no success");
  if (episode.driven) facts.push(`a person drove ${episode.driven} steps`);
  if (dataset.datasets.length > 1) facts.push(dataset.datasets[episode.source].path);
  return facts;
}

const rows = dataset.episodes.map((episode, number) => {
  const row = add(list, "li");
  const button = add(row, "button");
  button.type = "button";
  if (!shownNumbers.has(number)) button.classList.add("no-pictures");
  if (troubled(episode)) {
    const count = episode.findings.length + episode.more;
    add(button, "span", `${count} finding${count > 1 ? "s" : ""}`, `tag ${dataset.levels[episode.level]}`);
  }
  add(button, "span", titleOf(number));
  add(button, "small", factsOf(episode).join(", "));
  button.addEventListener("click", () => choose(number));
  return row;
});

function refilter() {
  const chosen = kept[filter.value];
  rows.forEach((row, number) => { row.hidden = !chosen(number); });
  const count = rows.filter((row) => !row.hidden).length;
  part(".counted").textContent = `${count} of ${rows.length}`;
}

// ---- marks -----------------------------------------------------------------------------------------------------------

function showMarks() {
  markButton.setAttribute("aria-pressed", marked.has(current));
  markButton.textContent = `${marked.has(current) ? "Unmark" : "Mark"} episode ${current}`;
  part(".marking .count").textContent = marked.size ? `${marked.size} marked${saved ? ", saved" : ""}` : "none marked";
  saveButton.disabled = !marked.size;
}

function mark() {
  if (!marked.delete(current)) marked.add(current);
  rows[current].classList.toggle("is-marked", marked.has(current));
  saved = false;
  showMarks();
  if (filter.value === "marked") refilter();
}

function save() {
  if (!marked.size) return;
  const words = [...marked].sort((a, b) => a - b).map(String);
  const text = JSON.stringify({ delete: words, datasets: dataset.datasets }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = dataset.marks;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = true;
  showMarks();
}

addEventListener("beforeunload", (event) => { if (marked.size && !saved) event.preventDefault(); });

// ---- the selected episode --------------------------------------------------------------------------------------------

const known = (values) => values.map((value, i) => [i, value]).filter(([, value]) => value !== null);

// A command holds until the next one.
const held = (values) => known(values).flatMap(([i, value], k, all) => (k ? [[i, all[k - 1][1]], [i, value]] : [[i, value]]));

// Grippers over time, or joints without a gripper, or turns of a camera; behind them what a person drove, and findings.
function timeline(svg, box, title, lines, spans, events) {
  const last = Math.max(view.total - 1, 1);
  const across = (step) => box.x + (step / last) * box.width;
  const values = lines.flatMap((line) => line.values.filter((value) => value !== null));
  const low = Math.min(...values, 0), high = Math.max(...values, 1);
  const up = (value) => box.y + box.height - 6 - ((value - low) / (high - low)) * (box.height - 34);
  for (const [[start, end], fill] of spans) {
    const width = Math.max(across(end - 1) - across(start), 3);
    shape(svg, "rect", { x: across(start), y: box.y, width, height: box.height, fill, "fill-opacity": 0.35 });
  }
  shape(svg, "rect", { ...box, fill: "none", stroke: "currentColor", "stroke-opacity": 0.25, rx: 6 });
  const text = shape(svg, "text", { x: box.x + 8, y: box.y + 15, fill: "currentColor", "font-size": 12 });
  text.textContent = title;
  for (const line of lines) if (line.name) shape(text, "tspan", { fill: line.stroke, dx: 8 }).textContent = line.name;
  for (const line of lines) {
    const points = pointsOf((line.holds ? held : known)(line.values).map(([i, value]) => [across(view.at[i]), up(value)]));
    shape(svg, "polyline", { points, fill: "none", stroke: line.stroke, "stroke-width": line.width });
  }
  for (const [step, kind] of events) {
    const mark = shape(svg, "text", { x: across(step), y: box.y + 15, fill: "currentColor", "font-size": 12, "text-anchor": "middle" });
    mark.textContent = kind === "open" ? "\u25b3" : "\u25bc";
    shape(mark, "title", {}).textContent = `the gripper ${kind}s at step ${step}`;
  }
  const cursor = shape(svg, "line", { y1: box.y, y2: box.y + box.height, stroke: "currentColor", "stroke-width": 1.5 });
  return (i) => { for (const end of ["x1", "x2"]) cursor.setAttribute(end, across(view.at[i])); };
}

const COLORS = ["#2f86d1", "#e07b1a", "#3f9d63", "#b3548f", "#8a6fd1", "#b08a2e", "#4aa3a3"];

function drawTimelines(episode) {
  const root = part(".timeline");
  root.replaceChildren();
  const spans = view.idle.map((run) => [run, "#8b929c"]);
  for (const run of view.interventions) spans.push([run, "#1c9a63"]);
  for (const found of episode.findings) if (found.severity !== "note") spans.push([found.steps, "#d98a1a"]);
  const drawn = view.grippers.map((gripper) => {
    const lines = [{ values: gripper.command, stroke: PREDICTED, width: 2, holds: true }];
    if (gripper.measured) lines.push({ values: gripper.measured, stroke: MEASURED, width: 1.5 });
    return [`${gripper.name} (top: open)`, lines, gripper.events];
  });
  if (view.lines.length) {
    const color = (i) => COLORS[i % COLORS.length];
    const lines = view.lines.map((line, i) => ({ name: line.name, values: line.values, stroke: color(i), width: 1.5 }));
    drawn.push([view.title, lines, []]);
  }
  if (!drawn.length) drawn.push(["no gripper of a known scale", [], []]);
  const high = view.buttons.length * ROW, height = high + drawn.length * 92;
  const svg = shape(root, "svg", { viewBox: `0 0 760 ${height}`, role: "img", "aria-label": "what is commanded over the steps" });
  drawButtons(svg);
  for (const of of ["arm", "player"]) {
    for (const item of part(".legend").querySelectorAll(`[data-of="${of}"]`)) item.hidden = (of === "player") !== (high > 0);
  }
  return drawn.map(([title, lines, events], i) =>
    timeline(svg, { x: 1, y: high + 1 + i * 92, width: 758, height: 88 }, title, lines, spans, events));
}

const ROW = 17;

// What a game's player holds down, a row for each button.
function drawButtons(svg) {
  const across = (step) => 1 + (step / Math.max(view.total - 1, 1)) * 758;
  view.buttons.forEach((button, i) => {
    const y = i * ROW;
    for (const [start, end] of button.held) {
      shape(svg, "rect", { x: across(start), y: y + 1, width: Math.max(across(end - 1) - across(start), 3), height: ROW - 3, fill: PREDICTED, "fill-opacity": 0.5 });
    }
    const text = shape(svg, "text", { x: 6, y: y + 12, fill: "currentColor", "font-size": 12 });
    text.textContent = button.name;
  });
}

function drawPaths() {
  const root = part(".looked-at .views");
  root.replaceChildren();
  return view.arms.flatMap((arm) => {
    const whose = arm.name ? `${arm.name}: ` : "";
    if (arm.positions.includes(null)) {
      add(root, "p", `${whose}positions are not all finite, so no path is drawn`, "dim");
      return [];
    }
    const svg = shape(root, "svg", { viewBox: "0 0 760 262", role: "img", "aria-label": `${whose}path of the end effector` });
    const data = { positions: arm.positions, chunks: arm.positions.map(() => []) };
    return [
      panel(svg, data, { x: 1, y: 1, width: 374, height: 260 }, [0, 1], `${whose}from above (x right, y up)`),
      panel(svg, data, { x: 385, y: 1, width: 374, height: 260 }, [0, 2], `${whose}from the side (x right, z up)`),
    ];
  });
}

function drawCameras() {
  const root = part(".cameras");
  root.replaceChildren();
  return Object.entries(view.pictures).map(([name, pictures]) => {
    const figure = add(root, "figure"), image = add(figure, "img"), none = add(figure, "div", "no frame", "noframe");
    const caption = add(figure, "figcaption");
    return (i) => {
      const before = view.pictured.findLastIndex((step) => step <= view.at[i]);
      const step = view.pictured[before], source = pictures[before];
      if (source) image.src = source;
      image.alt = `camera ${name} at step ${step}`;
      image.hidden = !source;
      none.hidden = Boolean(source);
      caption.textContent = step === view.at[i] ? name : `${name}, at step ${step}`;
    };
  });
}

function spokenStep(i) {
  const seconds = view.seconds?.[i], time = seconds == null ? "" : `, ${seconds.toFixed(1)} s`;
  const texts = [`step ${view.at[i]} of ${view.total}${time}`];
  for (const arm of view.arms) {
    const at = arm.positions[i];
    if (at) texts.push(`${arm.name || "arm"} at ${at.map((value) => value.toFixed(3)).join(", ")} m`);
  }
  for (const gripper of view.grippers) {
    const command = gripper.command[i], measured = gripper.measured?.[i];
    if (command !== null) texts.push(`${gripper.name} commanded ${command.toFixed(2)}${measured == null ? "" : `, measured ${measured.toFixed(2)}`}`);
  }
  const down = view.buttons.filter((button) => button.held.some(([start, end]) => start <= view.at[i] && view.at[i] < end));
  if (down.length) texts.push(`held down: ${down.map((button) => button.name).join(", ")}`);
  if (view.interventions.some(([start, end]) => start <= view.at[i] && view.at[i] < end)) texts.push("a person drives");
  return texts.join("; ");
}

function showStep(i) {
  slider.value = i;
  updates.forEach((update) => update(i));
  readout.value = spokenStep(i);
  slider.setAttribute("aria-valuetext", readout.value);
}

function stop() { clearInterval(playing); playing = null; playButton.textContent = "Play"; }

function play() {
  if (playing || !view) { stop(); return; }
  if (slider.value === slider.max) showStep(0);
  playButton.textContent = "Pause";
  playing = setInterval(() => {
    showStep(Number(slider.value) + 1);
    if (slider.value === slider.max) stop();
  }, 80);
}

function goTo(step) {
  const at = view.at.findLastIndex((drawn) => drawn <= step);
  showStep(Math.max(at, 0));
}

function listFindings(episode) {
  const root = part(".found");
  root.replaceChildren();
  for (const found of episode.findings) {
    const item = add(root, "li");
    add(item, "span", found.severity, `tag ${dataset.levels[found.severity]}`);
    const [start, end] = found.steps;
    add(item, "span", ` ${found.text}`);
    const button = add(item, "button", end - start > 1 ? `steps ${start} to ${end - 1}` : `step ${start}`);
    button.type = "button";
    button.disabled = !view;
    button.addEventListener("click", () => goTo(start));
  }
  if (episode.more) add(root, "li", `and ${episode.more} more`, "dim");
}

function choose(number) {
  stop();
  rows[current].firstChild.removeAttribute("aria-current");
  current = number;
  const episode = dataset.episodes[number], row = rows[number];
  row.firstChild.setAttribute("aria-current", "true");
  const box = list.getBoundingClientRect(), own = row.getBoundingClientRect();
  if (own.top < box.top || own.bottom > box.bottom) list.scrollTop += own.top - box.top - box.height / 3;
  view = shownNumbers.has(number) ? read(`episode-${number}`) : null;
  part(".name").textContent = titleOf(number);
  part(".facts").textContent = factsOf(episode).join(", ");
  part(".nothing").hidden = Boolean(view);
  part(".see").textContent = `${dataset.again} --episodes ${number}`;
  for (const name of [".player", "output", ".timeline", ".legend", ".looked-at .views", ".cameras"]) part(name).hidden = !view;
  updates = view ? [...drawCameras(), ...drawTimelines(episode), ...drawPaths()] : [];
  listFindings(episode);
  showMarks();
  if (!view) return;
  slider.max = view.at.length - 1;
  showStep(0);
}

function move(way, fits = () => true) {
  for (let number = current + way; number >= 0 && number < rows.length; number += way) {
    if (!rows[number].hidden && fits(number)) { choose(number); return; }
  }
}

const KEYS = {
  ArrowLeft: () => view && showStep(Math.max(Number(slider.value) - 1, 0)),
  ArrowRight: () => view && showStep(Math.min(Number(slider.value) + 1, Number(slider.max))),
  ArrowUp: () => move(-1),
  ArrowDown: () => move(1),
  " ": play,
  m: mark,
  n: () => move(1, (number) => troubled(dataset.episodes[number])),
  s: save,
};

document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, summary, a")) return;
  if (event.key === " " && event.target.matches("button")) return;
  event.preventDefault();
  action();
});
slider.addEventListener("input", () => showStep(Number(slider.value)));
playButton.addEventListener("click", play);
markButton.addEventListener("click", mark);
saveButton.addEventListener("click", save);
filter.addEventListener("change", refilter);
refilter();
choose(0);
