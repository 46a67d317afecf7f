// @ts-check
"use strict";

/** @type {any} uPlot, of the file before this one */
var uPlot;
/** @type {any} htmx, likewise */
var htmx;
/** @type {any} Idiomorph, likewise */
var Idiomorph;

/** @param {string} selector @param {ParentNode} [root] @returns {HTMLElement[]} */
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
/** @param {string} selector @param {ParentNode} [root] @returns {HTMLElement | null} */
const one = (selector, root = document) => root.querySelector(selector);
/** @param {string} tag @param {Record<string, unknown>} values @returns {any} an element with these properties */
const made = (tag, values) => Object.assign(document.createElement(tag), values);

// -- numbers that move -----------------------------------------------------------------------------------------------

/** @type {EventSource | null} the one stream of a page */
let stream = null;

/** Connects for the numbers and the parts that the page has now; a browser does so again by itself, and gets all of them. */
function live() {
  const body = document.body;
  const parts = all("[data-pushed]").map((part) => "part:" + part.dataset.pushed);
  const want = [...(body.dataset.events || "").split("\n").map((key) => key.trim()).filter(Boolean), ...parts].join("\n");
  const address = `/ui/events${now() || "?"}&want=` + encodeURIComponent(want);
  if (!body.dataset.live || !want || stream?.url.endsWith(address)) return;
  stream?.close();
  stream = new EventSource(address);
  stream.addEventListener("numbers", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("part", (event) => renew(JSON.parse(event.data)));
  stream.onerror = () => show({ "log/state": "away" });
  stream.onopen = () => body.dataset.stream = "open";
}

/** Changes a part of the page where it is another: what is open, typed or scrolled stays. @param {{name: string, html: string}} part */
function renew({ name, html }) {
  for (const place of all("[data-pushed]").filter((place) => place.dataset.pushed === name)) {
    const beforeAttributeUpdated = (/** @type {string} */ attribute) => attribute !== "open";
    const beforeNodeRemoved = (/** @type {Element} */ node) => !node.classList?.contains("uplot");
    Idiomorph.morph(place, html, { morphStyle: "innerHTML", ignoreActiveValue: true, callbacks: { beforeAttributeUpdated, beforeNodeRemoved } });
    for (const begin of [htmx.process, times, charts]) begin(place);
  }
}

/** @param {Record<string, string>} numbers */
function show(numbers) {
  for (const [key, text] of Object.entries(numbers)) {
    const name = CSS.escape(key);
    for (const place of all(`[data-live="${name}"]`)) if (place.textContent !== text) place.textContent = text;
    for (const place of all(`[data-live-state="${name}"]`)) place.dataset.state = text;
    const part = key.endsWith("/state") ? CSS.escape(key.slice(0, -"/state".length)) : "";
    if (part) for (const place of all(`[data-part="${part}"]`)) place.dataset.state = text;
  }
  document.dispatchEvent(new CustomEvent("headrace:numbers", { detail: numbers }));
}

/** A part of a page is asked for again when a number that it depends on has moved; its keys stand in it, one a line. */
function refreshed() {
  /** @type {Record<string, string>} */
  const seen = {};
  document.addEventListener("headrace:numbers", (event) => {
    const numbers = /** @type {CustomEvent} */ (event).detail;
    const moved = Object.keys(numbers).filter((key) => key in seen && seen[key] !== numbers[key]);
    Object.assign(seen, numbers);
    for (const part of all("[data-refresh]")) {
      const keys = (part.dataset.refresh || "").split("\n");
      if (moved.some((key) => keys.includes(key))) htmx.trigger(part, "moved");
    }
  });
  document.addEventListener("submit", (event) => {
    const form = /** @type {HTMLElement} */ (event.target);
    if (form.id && one(`[hx-include="#${form.id}"]`)) event.preventDefault();
  });
}

// -- the tail of a topic ---------------------------------------------------------------------------------------------

const SHOWN = 1000;

/** Rows that come are put on top; while it is paused they are kept, and none is lost. */
function tail() {
  const button = one("[data-tail]");
  const table = /** @type {HTMLTableElement | null} */ (one("#rows"));
  if (!button || !table) return;
  const body = table.tBodies[0];
  const columns = JSON.parse(table.dataset.columns || "[]");
  const base = location.pathname;
  /** @type {[number, string[]][]} */
  let waiting = [];
  /** @type {EventSource | null} */
  let stream = null;
  let on = false, due = false;
  const say = () => button.textContent = on ? "Pause" : waiting.length ? `Follow (${waiting.length} new)` : "Follow";
  const draw = () => {
    due = false;
    if (!on) return say();
    const some = waiting.slice(-SHOWN);
    waiting = [];
    for (const row of all("tr.new", body)) row.classList.remove("new");
    body.prepend(...some.reverse().map(([offset, cells]) => line(base, offset, cells, "new")));
    while (body.rows.length > SHOWN) body.deleteRow(-1);
    say();
  };
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    if (on && !stream) {
      const address = `${button.dataset.tail}${now() || "?"}&after=${button.dataset.after}&columns=${encodeURIComponent(columns.join("\n"))}`;
      stream = new EventSource(address);
      stream.addEventListener("rows", (event) => {
        for (const row of JSON.parse(/** @type {MessageEvent} */ (event).data)) waiting.push(row);
        if (!due) { due = true; requestAnimationFrame(draw); }
      });
      addEventListener("pagehide", () => stream && stream.close());
    }
    draw();
  });
}

/** Rows that a filter finds come one chunk after the other, until there are enough, or it is cancelled. */
function search() {
  const place = one("#search");
  const table = /** @type {HTMLTableElement | null} */ (one("#rows"));
  if (!place || !table) return;
  const bar = /** @type {HTMLProgressElement} */ (one("progress", place));
  const status = /** @type {HTMLElement} */ (one("span", place));
  const cancel = /** @type {HTMLButtonElement} */ (one("button", place));
  const stream = new EventSource(place.dataset.searchIn || "");
  let text = "";
  const end = (/** @type {string} */ more) => {
    stream.close();
    bar.hidden = cancel.hidden = true;
    status.textContent = [text, more].filter(Boolean).join("; ");
    place.dataset.ended = "yes";
  };
  const read = (/** @type {Event} */ event) => JSON.parse(/** @type {MessageEvent} */ (event).data);
  stream.addEventListener("rows", (event) => {
    const found = read(event).map((/** @type {[number, string[]]} */ [offset, cells]) => line(location.pathname, offset, cells, ""));
    table.tBodies[0].append(...found);
  });
  stream.addEventListener("progress", (event) => {
    const { looked, of, found } = read(event);
    Object.assign(bar, { max: of, value: looked });
    status.textContent = text = `${found.toLocaleString("en")} found in ${looked.toLocaleString("en")} of ${of.toLocaleString("en")} rows`;
  });
  stream.addEventListener("wrong", (event) => {
    const { message, advice } = read(event);
    place.after(made("pre", { className: "wrong", role: "alert", textContent: advice ? `${message}\n\n${advice}` : message }));
    end("");
  });
  stream.addEventListener("done", (event) => {
    const { after } = read(event);
    end(after === null ? "that is all" : "");
    if (after === null) return;
    const address = new URL(place.dataset.next || "", location.href);
    address.searchParams.set("offset", String(after));
    one("#pager")?.append(made("a", { rel: "next", href: address.href, textContent: "look on →" }));
  });
  stream.onerror = () => end("the connection to the server is gone: load the page again");
  cancel.addEventListener("click", () => end("cancelled"));
  cancel.disabled = false;
  addEventListener("pagehide", () => stream.close());
}

/** @param {string} base @param {number} offset @param {string[]} cells @param {string} kind */
function line(base, offset, cells, kind) {
  const row = /** @type {HTMLTableRowElement} */ (made("tr", { className: kind }));
  const href = row.dataset.href = `${base}/${offset}${now()}`;
  row.append(made("th", { className: "n", scope: "row" }), ...cells.map((textContent) => made("td", { textContent })));
  row.cells[0].append(made("a", { href, textContent: offset }));
  return row;
}

// -- tables ----------------------------------------------------------------------------------------------------------

/** A search field shows the rows of a table that hold its text. */
function filters() {
  for (const field of all("input[data-filter]")) {
    const input = /** @type {HTMLInputElement} */ (field);
    const table = one(input.dataset.filter || "");
    input.addEventListener("input", () => {
      const text = input.value.toLowerCase();
      for (const row of table ? all("tbody tr", table) : []) row.hidden = !(row.textContent || "").toLowerCase().includes(text);
    });
  }
}

/** A form of checkboxes becomes one field with the names in it. */
function columns() {
  for (const form of all("form[data-columns]")) {
    form.addEventListener("submit", () => {
      const names = all("input[type=checkbox]", form).map((box) => /** @type {HTMLInputElement} */ (box));
      const field = /** @type {HTMLInputElement} */ (one("input[name=columns]", form));
      field.value = names.filter((box) => box.checked).map((box) => box.value).join("\n");
    });
  }
}

// -- SQL ---------------------------------------------------------------------------------------------------------------

/** The editor of queries: completion of topics and columns, Ctrl+Enter runs, Cancel ends what runs. */
function editor() {
  const form = /** @type {HTMLFormElement | null} */ (one("#query"));
  if (!form) return;
  const text = /** @type {HTMLTextAreaElement} */ (one("#q"));
  const words = /** @type {HTMLElement} */ (one("#words"));
  /** @type {Record<string, string[]>} */
  const topics = JSON.parse(form.dataset.topics || "{}");
  const quoted = (/** @type {string} */ name) => /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
  const begun = () => (/[\p{L}\p{N}_."-]+$/u.exec(text.value.slice(0, text.selectionStart)) || [""])[0];
  const take = (/** @type {string} */ name) => {
    text.setRangeText(quoted(name), text.selectionStart - begun().length, text.selectionStart, "end");
    text.focus();
    complete();
  };
  const complete = () => {
    const start = begun().replaceAll('"', "").toLowerCase();
    const named = Object.keys(topics).filter((topic) => text.value.includes(topic));
    const known = new Set([...Object.keys(topics), ...(named.length ? named : Object.keys(topics)).flatMap((topic) => topics[topic])]);
    const found = start ? [...known].filter((name) => name.toLowerCase().includes(start) && name.toLowerCase() !== start) : [];
    found.sort((a, b) => Number(b.toLowerCase().startsWith(start)) - Number(a.toLowerCase().startsWith(start)));
    words.replaceChildren(...found.slice(0, 12).map((name) => made("button", { type: "button", textContent: name, onclick: () => take(name) })));
  };
  text.addEventListener("input", complete);
  text.addEventListener("keydown", (event) => {
    const first = one("button", words);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
    else if (event.key === "Tab" && first && !event.shiftKey) { event.preventDefault(); first.click(); }
    else if (event.key === "Escape" && first) words.replaceChildren();
  });
  const cancel = /** @type {HTMLButtonElement} */ (one("#cancel"));
  const result = one("#result");
  cancel.hidden = !result || result.childElementCount === 0 || Boolean(one("table, .wrong", result));
  cancel.addEventListener("click", () => {
    result?.dispatchEvent(new CustomEvent("htmx:abort", { bubbles: true, detail: { elt: result } }));
    if (result) result.textContent = "Cancelled.";
    cancel.hidden = true;
  });
  result?.addEventListener("htmx:afterRequest", () => cancel.hidden = true);
}

/** @type {WeakMap<HTMLElement, { renew: () => void, draw: () => void }>} charts that are drawn */
const drawn = new WeakMap();

/** Draws the numbers of `data-chart`, in the colours of the page; one that is drawn gets its new numbers. @param {ParentNode} root */
function charts(root) {
  for (const figure of all("[data-chart]", root)) {
    let plot = /** @type {any} */ (null), about = /** @type {any} */ (null), text = "";
    const sorted = () => {
      const /** @type {number[][]} */ values = about.values, first = values[0];
      const order = [...first.keys()].filter((i) => first[i] !== null).sort((a, b) => first[a] - first[b]);
      return values.map((column) => order.map((i) => column[i]));
    };
    const draw = () => {
      plot?.destroy();
      const style = getComputedStyle(document.documentElement);
      const line = { stroke: style.getPropertyValue("--dim"), grid: { stroke: style.getPropertyValue("--line"), width: 1 } };
      const kind = figure.dataset.form;
      const series = about.names.slice(1).map((/** @type {string} */ label, /** @type {number} */ i) => {
        const stroke = style.getPropertyValue(`--series-${i % 4 + 1}`);
        const bars = kind === "bars" ? { paths: uPlot.paths.bars({ size: [0.7, 60] }), fill: stroke } : {};
        const dots = kind === "scatter" ? { paths: () => null, points: { show: true, size: 5, fill: stroke } } : {};
        const edge = (about.bands || []).flat().includes(i + 1);
        return { label, stroke: edge ? style.getPropertyValue("--line") : stroke, width: edge ? 1 : 1.5, ...bars, ...dots };
      });
      const named = about.labels ? { values: (/** @type {unknown} */ _, /** @type {number[]} */ at) => at.map((i) => about.labels[i] ?? "") }
        : about.time ? { values: (/** @type {unknown} */ _, /** @type {number[]} */ at) => stamped(at), space: 70 } : {};
      // Bars begin at 0, and the outer ones are whole.
      const bars = kind === "bars";
      const wide = bars && !about.time ? { range: (/** @type {unknown} */ _, /** @type {number} */ a, /** @type {number} */ b) => [a - 0.6, b + 0.6] } : {};
      const zero = bars ? { y: { range: (/** @type {unknown} */ _, /** @type {number} */ a, /** @type {number} */ b) => [Math.min(0, a), Math.max(0, b) * 1.05 || 1] } } : {};
      const bands = (about.bands || []).map((/** @type {[number, number]} */ pair) => ({ series: pair, fill: style.getPropertyValue("--busy-fill") }));
      const utc = localStorage.getItem("headrace.zone") !== "local";
      plot = new uPlot({
        bands, ...(utc ? { tzDate: (/** @type {number} */ at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC") } : {}), hooks: { draw: [(/** @type {any} */ plot) => marked(plot, about.marks || [], style)] },
        width: Math.max(280, figure.clientWidth), height: Number(figure.dataset.height || 320), series: [{ label: about.names[0] }, ...series],
        scales: { x: { time: about.time && !about.labels, ...wide }, ...zero }, axes: [{ ...line, ...named }, line],
      }, sorted(), figure);
    };
    const renew = () => {
      const names = String(about?.names);
      if (text === figure.dataset.chart) return;
      about = JSON.parse(text = figure.dataset.chart || "{}");
      if (plot && String(about.names) === names) plot.setData(sorted()); else draw();
    };
    if (!drawn.has(figure)) drawn.set(figure, { renew, draw });
    drawn.get(figure)?.renew();
  }
}
/** @param {number[]} at seconds since 1970 @returns {string[]} times of day, or dates where days lie between them */
const stamped = (at) => at.map((s) => stamp(s * 1000).slice(...(at[at.length - 1] - at[0] > 172800 ? [0, 10] : [11, 19])));
const drawAgain = () => all("[data-chart]").forEach((figure) => drawn.get(figure)?.draw());

/** @type {Record<string, string>} */
const MARKS = { alarm: "--failed", drift: "--failed", rollback: "--held", training: "--series-2" };

/** Draws where something happened, as lines from the top down. @param {any} plot @param {any[]} marks @param {CSSStyleDeclaration} style */
function marked(plot, marks, style) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.lineWidth = devicePixelRatio;
  ctx.textAlign = "left";
  let free = bbox.left;
  for (const mark of marks.slice().sort((a, b) => a.x - b.x)) {
    const x = Math.round(plot.valToPos(mark.x, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = style.getPropertyValue(MARKS[mark.kind] || "--dim");
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const width = ctx.measureText(mark.text).width;
    if (x < free || x + width > bbox.left + bbox.width) continue;
    ctx.fillText(mark.text, x + 3 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
    free = x + width + 8 * devicePixelRatio;
  }
  ctx.restore();
}

// -- producing ---------------------------------------------------------------------------------------------------------

/** A canvas to draw on: white ink on black, as MNIST's digits; what is drawn is moved to the middle, as theirs are. */
function drawings() {
  for (const place of all("[data-draw]")) {
    const canvas = /** @type {HTMLCanvasElement} */ (one("canvas", place));
    const field = /** @type {HTMLInputElement} */ (one("input[type=hidden]", place));
    const file = /** @type {HTMLInputElement} */ (one("input[type=file]", place));
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
    const { width, height } = canvas;
    /** @type {[number, number] | null} */
    let last = null;
    const keep = (/** @type {boolean} */ centre) => {
      const data = pen.getImageData(0, 0, width, height).data;
      let mass = 0, x = 0, y = 0;
      for (let i = 0; i < width * height; i++) { const ink = data[4 * i]; mass += ink; x += ink * (i % width); y += ink * Math.floor(i / width); }
      const right = centre && mass ? Math.round(x / mass - (width - 1) / 2) : 0;
      const down = centre && mass ? Math.round(y / mass - (height - 1) / 2) : 0;
      let text = "";
      for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
        const [from, at] = [row + down, column + right];
        const inside = from >= 0 && from < height && at >= 0 && at < width;
        text += String.fromCharCode(inside ? data[4 * (from * width + at)] : 0);
      }
      field.value = mass ? btoa(text) : "";
      field.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const clear = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, width, height); field.value = ""; file.value = ""; };
    const at = (/** @type {PointerEvent} */ event) => {
      const box = canvas.getBoundingClientRect();
      return /** @type {[number, number]} */ ([(event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height]);
    };
    const draw = (/** @type {PointerEvent} */ event) => {
      if (!last) return;
      const next = at(event);
      Object.assign(pen, { strokeStyle: "#fff", lineWidth: width / 13, lineCap: "round", lineJoin: "round" });
      pen.beginPath();
      pen.moveTo(...last);
      pen.lineTo(next[0] + 0.01, next[1]);
      pen.stroke();
      last = next;
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = at(event); draw(event); event.preventDefault(); });
    canvas.addEventListener("pointermove", draw);
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { if (last) keep(true); last = null; });
    one("[data-clear]", place)?.addEventListener("click", clear);
    file.addEventListener("change", async () => {
      const chosen = file.files && file.files[0];
      if (!chosen) return;
      const image = await createImageBitmap(chosen);
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, width, height);
      pen.filter = "grayscale(1)";
      pen.drawImage(image, 0, 0, width, height);
      pen.filter = "none";
      keep(false);
    });
    const given = field.value;
    clear();
    if (!given) continue;
    const [image, bytes] = [pen.createImageData(width, height), atob(given)];
    for (let i = 0; i < width * height; i++) image.data.set([0, 0, 0, 255].map((alpha) => alpha || bytes.charCodeAt(i)), 4 * i);
    pen.putImageData(image, 0, 0);
    field.value = given;
  }
}

/** A file is sent as it is, with the form's token: sent twice, its rows are there once. */
function files() {
  const form = /** @type {HTMLFormElement | null} */ (one("#file-form"));
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const file = /** @type {HTMLInputElement} */ (one("#file")).files?.[0];
    const outcome = /** @type {HTMLElement} */ (one("#outcome"));
    const button = /** @type {HTMLButtonElement} */ (one("button", form));
    if (!file) return;
    button.disabled = true;
    outcome.textContent = `Sending ${file.name} …`;
    const token = /** @type {HTMLInputElement} */ (one("#token")).value;
    try {
      const got = await fetch(`${(form.dataset.to || "").split("?")[0]}${now() || "?"}&name=${encodeURIComponent(file.name)}&token=${token}`, { method: "POST", body: file, headers: { "HX-Request": "true" } });
      const text = await got.text();
      if (got.ok) htmx.swap("#outcome", text, { swapStyle: "innerHTML" });
      else outcome.textContent = JSON.parse(text).detail;
    } catch (error) {
      outcome.textContent = "The file did not arrive; append it again: no row is there twice.";
    }
    button.disabled = false;
  });
}

/** Buttons that open a dialog, and that close theirs. */
function dialogs() {
  document.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("[data-dialog], [data-close]");
    if (!(button instanceof HTMLElement)) return;
    if (button.dataset.dialog) /** @type {HTMLDialogElement | null} */ (one(button.dataset.dialog))?.showModal();
    else button.closest("dialog")?.close();
  });
}

// -- times, light and dark -------------------------------------------------------------------------------------------

/** @param {number} ms since 1970 @returns {string} the time as ISO 8601, local or UTC as it was chosen */
const stamp = (ms) => new Date(ms - (localStorage.getItem("headrace.zone") === "local" ? new Date(ms).getTimezoneOffset() * 60000 : 0)).toISOString();

/** @param {ParentNode} [root] */
function times(root = document) {
  const local = localStorage.getItem("headrace.zone") === "local";
  const button = one("#zone");
  if (button) button.textContent = local ? "local" : "UTC";
  for (const place of all("time[data-us]", root)) {
    const us = Number(place.dataset.us);
    if (!us || Number.isNaN(new Date(us / 1000).getTime())) continue;
    place.textContent = stamp(us / 1000).replace("T", " ").replace("Z", "").replace(".000", "");
    place.title = local ? "local time" : "UTC";
  }
}

function switches() {
  one("#zone")?.addEventListener("click", () => {
    localStorage.setItem("headrace.zone", localStorage.getItem("headrace.zone") === "local" ? "utc" : "local");
    times();
  });
  one("#theme")?.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("headrace.theme", root.dataset.theme);
    document.dispatchEvent(new CustomEvent("headrace:theme"));
  });
  const keys = /** @type {HTMLDialogElement | null} */ (one("#keys"));
  one("#help")?.addEventListener("click", () => keys?.showModal());
}

// -- the picture's size, and the way through time ---------------------------------------------------------------------

/** A picture fits its place as long as it can be read; its size is remembered. */
function zoom() {
  for (const picture of all(".picture")) {
    const svg = one("svg", picture);
    const [, , width, height] = (svg?.getAttribute("viewBox") || "0 0 1 1").split(" ").map(Number);
    const fit = () => Math.min(1, ((picture.clientWidth || innerWidth) - 2) / width);
    let scale = Number(localStorage.getItem("headrace.zoom")) || Math.max(0.85, fit());
    const draw = () => { svg?.setAttribute("width", String(width * scale)); svg?.setAttribute("height", String(height * scale)); };
    for (const button of all("[data-zoom]", picture.parentElement || picture)) {
      button.addEventListener("click", () => {
        const way = button.dataset.zoom;
        scale = way === "fit" ? fit() : Math.min(3, Math.max(0.15, scale * (way === "in" ? 1.25 : 0.8)));
        if (way === "fit") localStorage.removeItem("headrace.zoom"); else localStorage.setItem("headrace.zoom", String(scale));
        draw();
      });
    }
    draw();
  }
}

/** The slider goes to a slice when it comes to rest; on the newest one a page is of now. @param {ParentNode} root */
function travel(root) {
  const rail = /** @type {HTMLInputElement | null} */ (one("[data-travel]", root));
  const said = one("output", root);
  if (!rail || !said) return;
  let resting = 0;
  const goes = () => {
    const address = new URL(location.href);
    if (rail.value === rail.max) address.searchParams.delete("at");
    else address.searchParams.set("at", `slice:${rail.value}`);
    sessionStorage.setItem("headrace.travel", String(scrollY));
    location.assign(address);
  };
  rail.addEventListener("input", async () => {
    clearTimeout(resting);
    resting = setTimeout(goes, 600);
    const number = rail.value;
    said.textContent = number === rail.max ? "now" : `slice ${number}`;
    const found = await (await fetch(`/ui/slices/${number}${now()}`)).json();
    if (number !== rail.value || number === rail.max || !found.ts_us) return;
    const time = said.appendChild(document.createElement("time"));
    time.dataset.us = found.ts_us;
    time.before(" · ");
    times(said);
  });
  if (rail.dataset.liveMax) {
    document.addEventListener("headrace:numbers", (event) => {
      const newest = /** @type {CustomEvent} */ (event).detail["log/slice"];
      if (!newest || resting) return;
      rail.max = newest.replaceAll(",", "");
      rail.value = rail.max;
    });
  }
  const before = sessionStorage.getItem("headrace.travel");
  sessionStorage.removeItem("headrace.travel");
  if (before !== null) { rail.focus({ preventScroll: true }); scrollTo(0, Number(before)); }
}

// -- keys ------------------------------------------------------------------------------------------------------------

/** @type {Record<string, string>} */
const PLACES = { p: "/ui/", t: "/ui/topics", m: "/ui/models", a: "/ui/alarms", d: "/ui/letters", s: "/ui/sql", h: "/ui/health" };

function keyboard() {
  let going = false;
  document.addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, textarea, select, dialog, canvas")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (going && PLACES[event.key]) { location.href = PLACES[event.key] + now(); event.preventDefault(); }
    going = event.key === "g";
    if (event.key === "/") {
      const field = /** @type {HTMLInputElement | null} */ (one("[data-search]"));
      if (field) { field.focus(); field.select(); event.preventDefault(); }
    } else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "Enter") {
      const row = one("tr.current[data-href]");
      if (row && target === document.body) location.href = row.dataset.href || "";
    } else if (event.key === "?") /** @type {HTMLDialogElement | null} */ (one("#keys"))?.showModal();
  });
}

/** @returns {string} what the address of this page says of time and pipeline, for that of another one */
function now() {
  const said = [...new URL(location.href).searchParams].filter(([name]) => name === "at" || name === "pipeline");
  return said.length ? "?" + new URLSearchParams(said) : "";
}

/** @param {number} by */
function step(by) {
  const rows = all("tbody tr[data-href]").filter((row) => !row.hidden);
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.classList.contains("current"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
  rows[at]?.classList.remove("current");
  next.classList.add("current");
  next.scrollIntoView({ block: "nearest" });
}

/** Where a part of the page could not be had, or a change was refused, the reason stands in its place. @param {any} event */
function refused(event) {
  const { target, xhr } = event.detail;
  let text = "The server did not answer; try again.";
  try { text = JSON.parse(xhr.responseText).detail; } catch { /* it said nothing */ }
  target.textContent = text;
}

// -- start -----------------------------------------------------------------------------------------------------------

live();
refreshed();
dialogs();
tail();
search();
editor();
drawings();
files();
filters();
columns();
times();
switches();
keyboard();
zoom();
charts(document);
addEventListener("pagehide", () => stream?.close());
addEventListener("resize", drawAgain);
document.addEventListener("headrace:theme", drawAgain);
document.body.addEventListener("htmx:afterSwap", (event) => {
  const part = /** @type {HTMLElement} */ (event.target);
  for (const begin of [times, charts, travel]) begin(part);
  live();
});
for (const kind of ["htmx:responseError", "htmx:sendError"]) document.body.addEventListener(kind, refused);
