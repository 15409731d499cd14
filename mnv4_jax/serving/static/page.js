// One row a face. Nothing is remembered after the tab closes. `answers` (answers.js) has the detector.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { rows: [], asked: 0, sort: null, ascending: true, cancel: null };

function threshold() { return Number($("threshold").value); }

function labelOf(row) {
  if (row.p_fake === null) return "none";
  return row.p_fake >= threshold() ? "fake" : "real";
}

function words(row) {
  if (row.p_fake === null) return row.error || row.reason || "no answer";
  const p = row.p_fake;
  if (labelOf(row) === "fake") return p > 0.95 ? "called fake: strong traces" : "called fake";
  return p < 0.05 ? "called real: no traces that it knows" : "called real";
}

function show() {
  const filter = $("filter").value;
  let rows = state.rows.filter((row) => !filter || labelOf(row) === filter);
  if (state.sort) {
    const key = (row) => state.sort === "label" ? labelOf(row) : row[state.sort];
    rows = [...rows].sort((a, b) => {
      const [x, y] = [key(a) ?? -1, key(b) ?? -1];
      return (x < y ? -1 : x > y ? 1 : 0) * (state.ascending ? 1 : -1);
    });
  }
  const body = $("rows");
  body.replaceChildren(...rows.map((row) => row.element ??= build(row)));
  for (const row of rows) {
    const answer = row.element.querySelector(".answer");
    answer.textContent = words(row);
    answer.className = `answer ${labelOf(row)}`;
  }
  if (!rows.length) {
    const cell = document.createElement("td");
    cell.colSpan = 4;
    cell.textContent = state.rows.length ? "None of the answers." : "No picture yet.";
    body.append(document.createElement("tr"));
    body.lastChild.append(cell);
  }
  document.querySelectorAll("th button").forEach((button) => {
    const mine = button.dataset.sort === state.sort;
    button.parentElement.setAttribute(
      "aria-sort", mine ? (state.ascending ? "ascending" : "descending") : "none");
  });
}

function build(row) {
  const tr = document.createElement("tr");
  const cells = [0, 1, 2, 3].map(() => tr.appendChild(document.createElement("td")));
  const frame = cells[0].appendChild(document.createElement("div"));
  frame.className = "picture";
  draw(row, frame);
  cells[1].className = "file";
  cells[1].textContent = row.file;
  cells[2].textContent = row.p_fake === null ? "–" : `${(100 * row.p_fake).toFixed(1)}%`;
  const answer = cells[3].appendChild(document.createElement("div"));
  answer.className = "answer";
  if (row.p_fake !== null && answers.explain) {
    const button = cells[3].appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = "Where?";
    button.setAttribute("aria-label", `Where does ${row.file} look fake or real?`);
    button.addEventListener("click", () => explain(row, frame, button));
  }
  return tr;
}

async function draw(row, frame) {
  const canvas = frame.appendChild(document.createElement("canvas"));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", row.face ? `a face in ${row.file}` : row.file);
  canvas.width = canvas.height = 8;
  try {
    const bitmap = await createImageBitmap(row.source);
    row.size = [bitmap.width, bitmap.height];
    const scale = 256 / Math.max(bitmap.width, bitmap.height);
    canvas.width = Math.max(1, bitmap.width * scale);
    canvas.height = Math.max(1, bitmap.height * scale);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    if (row.face) {
      const [x, y, w, h] = row.face.map((v) => v * scale);
      context.lineWidth = 4;
      context.strokeStyle = "#fff";
      context.strokeRect(x, y, w, h);
      context.lineWidth = 2;
      context.strokeStyle = "#1a5fb4";
      context.strokeRect(x, y, w, h);
    }
    bitmap.close();
  } catch {
    canvas.remove();
    frame.textContent = "(no preview)";
  }
}

async function explain(row, frame, button) {
  button.disabled = true;
  const answer = await answers.explain(row.source, row.index);
  if (!answer || !row.size) { button.textContent = "No map"; return; }
  const image = new Image();
  image.alt = "orange speaks for fake, blue for real";
  image.src = URL.createObjectURL(answer.map);
  image.className = "map";
  const [left, top, width, height] = answer.seen, [w, h] = row.size;
  for (const [side, of] of [["left", left / w], ["top", top / h],
                            ["width", width / w], ["height", height / h]]) {
    image.style[side] = `${100 * of}%`;
  }
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 100 });
  slider.setAttribute("aria-label", `how much of the map of ${row.file} is shown`);
  slider.addEventListener("input", () => { image.style.opacity = slider.value / 100; });
  frame.append(image);
  frame.after(slider);
  button.remove();
}

async function ask(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  state.cancel?.abort();
  const cancel = state.cancel = new AbortController();
  $("progress-line").hidden = $("cancel").hidden = false;
  $("progress").max = pictures.length;
  let done = 0;
  const next = async () => {
    while (pictures.length && !cancel.signal.aborted) {
      const file = pictures.shift();
      const order = state.asked += 1;  // answers come in another
      const name = file.webkitRelativePath || file.name || "pasted picture";
      try {
        const rows = await answers.predict(file, name, cancel.signal);
        state.rows.push(...rows.map((row, index) => ({ ...row, index, order, source: file })));
      } catch (error) {
        if (cancel.signal.aborted) return;
        state.rows.push({ file: name, p_fake: null, error: error.message, order, source: file });
      }
      state.rows.sort((a, b) => a.order - b.order);
      done += 1;
      $("progress").value = done;
      $("status").textContent = `${done} of ${$("progress").max}`;
      show();
    }
  };
  await Promise.all(Array.from({ length: answers.atOnce }, next));
  $("cancel").hidden = true;
  $("status").textContent = cancel.signal.aborted ? `cancelled after ${done}` : `${done} done`;
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function table() {
  return state.rows.map((row) => ({
    file: row.file, p_fake: row.p_fake, label: row.p_fake === null ? null : labelOf(row),
    face: row.face ?? null, reason: row.reason ?? row.error ?? null,
  }));
}

function csvCell(value) {
  let text = value === null ? "" : Array.isArray(value) ? value.join(" ") : String(value);
  if (/^[=+\-@]/.test(text) && Number.isNaN(Number(text))) text = `'${text}`;  // no formulas
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

for (const id of ["files", "folder", "camera"]) {
  $(id).addEventListener("change", (event) => { ask(event.target.files); });
}
const drop = $("drop");
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  ask(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => { ask(event.clipboardData.files); });
$("cancel").addEventListener("click", () => state.cancel?.abort());
$("clear").addEventListener("click", () => { state.rows = []; show(); });
$("threshold").addEventListener("change", show);
$("filter").addEventListener("change", show);
$("csv").addEventListener("click", () => {
  const lines = [["file", "p_fake", "label", "face", "reason"]];
  lines.push(...table().map((row) => Object.values(row)));
  save("answers.csv", "text/csv", lines.map((l) => l.map(csvCell).join(",")).join("\r\n") + "\r\n");
});
$("json").addEventListener("click", () =>
  save("answers.json", "application/json", JSON.stringify(table(), null, 1)));
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  state.ascending = state.sort === button.dataset.sort ? !state.ascending : true;
  state.sort = button.dataset.sort;
  show();
}));

async function start() {
  $("where").textContent = answers.about;
  const [text, href] = answers.more;
  const more = $("more").appendChild(document.createElement(href ? "a" : "span"));
  more.textContent = text;
  if (href) more.href = href;
  const facts = await answers.model();
  const options = [["0.5", "50%"]];
  for (const [rate, p] of Object.entries(facts.thresholds)) {
    const text = `${(100 * p).toFixed(1)}%: ${100 * rate} of 100 photographs called fake`;
    options.push([String(p), text]);
  }
  for (const [value, text] of options) $("threshold").append(new Option(text, value));
  show();
  try {
    await answers.ready;
    document.documentElement.dataset.ready = "yes";
    $("state").textContent = "";
  } catch (error) {
    $("state").textContent = `The detector did not start: ${error.message}`;
  }
}
start();
