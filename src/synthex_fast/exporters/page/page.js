"use strict";
// Draws what the server sends. Everything is put in as text, never as markup: names are the program's own.
(() => {
  const base = location.pathname.replace(/\/*$/, "/");
  const SVG = "http://www.w3.org/2000/svg";
  const CAUSES = ["boundary", "idle", "debt", "trim", "automatic", "watermark", "forced"];
  const CAUSE_TEXT = {
    boundary: "between requests", idle: "while idle", debt: "owed since a request", trim: "asked for by the governor",
    automatic: "by the interpreter", watermark: "memory high", forced: "memory high, in a request",
  };
  const LEVELS = ["warning", "high", "critical", "emergency"];
  const KEEP_SECONDS = 3600, LOG_MOST = 100, FORGET_SECONDS = 60;
  // How often the worker that is shown is asked for before another one's answer will do, and how long it may be silent.
  const TRIES = 6, SILENT_SECONDS = 8, DISCOVER_SECONDS = 20;

  // ---- Figures as text. Units are the package's: 1 MB is 2^20 bytes.

  const NONE = "–";
  const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
  function digits(x) {
    const size = Math.abs(x);
    return x.toFixed(size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2);
  }
  function bytes(n) {
    if (!isNumber(n)) return NONE;
    if (Math.abs(n) < 1024) return `${Math.round(n)} B`;
    const units = ["KB", "MB", "GB", "TB", "PB"];
    let unit = -1;
    do { n /= 1024; unit++; } while (Math.abs(n) >= 999.5 && unit < units.length - 1);
    return `${digits(n)} ${units[unit]}`;
  }
  function seconds(s) {
    if (!isNumber(s)) return NONE;
    if (s === 0) return "0 ms";
    if (s < 0.000095) return `${digits(s * 1e6)} µs`;
    if (s < 0.995) return `${digits(s * 1e3)} ms`;
    if (s < 120) return `${digits(s)} s`;
    if (s < 7200) return `${Math.round(s / 60)} min`;
    return `${digits(s / 3600)} h`;
  }
  // For an axis: without the zeros.
  const round = (n) => bytes(n).replace(/\.0+ /, " ").replace(/(\.\d*?)0+ /, "$1 ");
  const bin = (s) => (s < 0.0009 ? `${Math.round(s * 1e6)} µs` : s < 0.9 ? `${Math.round(s * 1e3)} ms` : `${s} s`);
  const percent = (x, places = 1) => (isNumber(x) ? `${(100 * x).toFixed(places)} %` : NONE);
  const count = (n) => (isNumber(n) ? Math.round(n).toLocaleString("en-US").replace(/,/g, "\u202f") : NONE);
  const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");
  const ago = (s) => (s < 1.5 ? "now" : s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`);
  const words = (name) => name.replace(/_/g, " ");

  // ---- Elements

  function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    return fill(element, attributes, children);
  }
  function s(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  // Only what differs is touched, so that a selection, the focus or a reader's place is not lost each second.
  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  function put(element, name, value) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
  function show(element, wanted) {
    if (element.hidden === wanted) element.hidden = !wanted;
  }

  function section(id, title, width, ...children) {
    const aside = h("span", { class: "aside" });
    const head = h("header", {}, h("h2", { id: `${id}-title` }, title), aside);
    const element = h("section", { id, class: width, "aria-labelledby": `${id}-title`, tabindex: "-1" }, head, ...children);
    return { element, aside, head };
  }

  // A table whose rows are known by a key. A column: [heading, how to fill the cell, {class, words, title}].
  function table(caption, columns, { cards = true, empty = "" } = {}) {
    const body = h("tbody", { role: "rowgroup" });
    const heads = columns.map(([name, , more = {}]) =>
      h("th", { scope: "col", role: "columnheader", class: [more.words && "words", more.class].filter(Boolean).join(" ") || null, title: more.title }, name));
    const element = h("table", { class: cards ? "wide cards" : "wide tight", role: "table" },
      h("caption", { class: "unseen" }, caption), h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)), body);
    const nothing = h("p", { class: "empty" }, empty);
    const rows = new Map();
    return {
      element: h("div", {}, element, nothing), nothing,
      update(items, keyOf = (item) => item.name) {
        show(element, items.length > 0);
        show(nothing, items.length === 0);
        const seen = new Set();
        let before = null;
        for (const item of items) {
          const key = keyOf(item);
          seen.add(key);
          let row = rows.get(key);
          if (!row) {
            const cells = columns.map(([name, , more = {}], n) => n
              ? h("td", { role: "cell", "data-name": name, class: [more.words && "words", more.class].filter(Boolean).join(" ") || null })
              : h("th", { role: "rowheader", scope: "row" }));
            row = { element: h("tr", { role: "row" }, ...cells), cells };
            rows.set(key, row);
          }
          columns.forEach(([, write], n) => {
            const written = write(item, row.cells[n]);
            if (typeof written === "string") {
              say(row.cells[n], written);
              if (n) row.cells[n].classList.toggle("zero", written === "0" || written === NONE || written === "0 B" || written === "0 ms");
            }
          });
          const place = before ? before.nextSibling : body.firstChild;
          if (place !== row.element) body.insertBefore(row.element, place);
          before = row.element;
        }
        for (const [key, row] of rows) {
          if (!seen.has(key)) { row.element.remove(); rows.delete(key); }
        }
      },
    };
  }

  // Text with a bar after it, made once.
  function metered(cell, text, share) {
    if (!cell.firstElementChild) {
      cell.replaceChildren(h("span"), h("span", { class: "meter", "aria-hidden": "true" }, h("i")));
    }
    say(cell.firstElementChild, text);
    const bar = cell.lastElementChild;
    bar.style.visibility = isNumber(share) ? "visible" : "hidden";
    if (isNumber(share)) bar.firstElementChild.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  }
  function named(cell, name, kind) {
    if (!cell.firstElementChild) cell.replaceChildren(h("span", { class: "name" }), h("span", { class: "kind" }));
    say(cell.firstElementChild, name);
    say(cell.lastElementChild, kind === name ? "" : kind);
  }

  // ---- What is known: each process apart. A request may be answered by any of a server's workers, and no server lets a
  // client name one: so the one that is wanted is asked for by its id, and another says only that it is another.

  const processes = new Map();
  let shownId = null, chosen = null, paused = false;
  // Until somebody chooses, a minute while there is no more.
  let range = 60, rangeChosen = false;
  let lastHeard = 0, transport = "connecting";

  function known(id) {
    let process = processes.get(id);
    if (!process) {
      process = { id, pid: Number(id.split("-")[0]), frame: null, before: null, rows: [], log: [], heard: 0 };
      processes.set(id, process);
    }
    return process;
  }

  function takeHistory({ id, rows }) {
    const process = known(id);
    process.heard = performance.now();
    const end = process.rows.length ? process.rows[process.rows.length - 1][0] : 0;
    // A full history begins before what is known; a further one continues it.
    const first = process.rows.length ? process.rows[0][0] : Infinity;
    process.rows = [...rows.filter((row) => row[0] < first), ...process.rows, ...rows.filter((row) => row[0] > end && row[0] >= first)];
  }

  function takeFrame(frame) {
    const process = known(frame.id);
    process.heard = performance.now();
    lastHeard = process.heard;
    // It is not the one that was asked for.
    if (!frame.time) { follow(process); return; }
    if (process.frame && process.frame.time === frame.time) return;
    process.before = process.frame;
    process.frame = frame;
    const memory = frame.memory || {};
    const last = process.rows[process.rows.length - 1];
    if (!last || frame.time > last[0] + 0.005) {
      process.rows.push([frame.time, memory.rss, memory.used, memory.held, memory.limit]);
    }
    while (process.rows.length && process.rows[0][0] < frame.time - KEEP_SECONDS) process.rows.shift();
    note(process);
    follow(process);
  }

  // Keeps an account of what the governor did: its figures only tell the last time of each.
  function note(process) {
    const { frame, before } = process;
    const actions = (frame.governor && frame.governor.actions) || {};
    const earlier = (before && before.governor && before.governor.actions) || {};
    for (const [name, action] of Object.entries(actions)) {
      const times = action.count - (earlier[name] ? earlier[name].count : 0);
      if (times <= 0 || (earlier[name] && action.count < earlier[name].count)) continue;
      process.log.push({
        key: `${frame.time} ${name}`, time: frame.time - action.seconds_ago, who: "governor", what: words(name),
        times: before ? times : action.count, freed: action.freed - (earlier[name] ? earlier[name].freed : 0),
        unit: name === "expire" ? "entries" : "bytes", why: action.why || "",
      });
    }
    for (const decision of (frame.tuner && frame.tuner.decisions) || []) {
      const key = `tuner ${decision.seconds} ${decision.decision}`;
      if (process.log.some((entry) => entry.key === key)) continue;
      const past = before && before.tuner ? 0 : null;
      process.log.push({
        key, time: past === null ? null : frame.time, since: decision.seconds, who: "collector",
        what: decision.from === decision.to ? words(decision.decision) : `young threshold ${count(decision.from)} → ${count(decision.to)}`,
        times: 1, freed: null, why: decision.reason || "",
      });
    }
    if (process.log.length > LOG_MOST) process.log.splice(0, process.log.length - LOG_MOST);
  }

  // The process to ask for, unless it is silent: it may be gone.
  function wanted() {
    const id = chosen || shownId, process = processes.get(id);
    return process && performance.now() - process.heard < 1000 * SILENT_SECONDS ? id : null;
  }

  // Shows the process that was chosen, or stays with one until another answers and it no longer does.
  function follow(process) {
    const now = performance.now();
    for (const [id, other] of processes) {
      if (id !== shownId && now - other.heard > 1000 * FORGET_SECONDS) processes.delete(id);
    }
    const choice = processes.get(chosen);
    if (choice && now - choice.heard < 1000 * FORGET_SECONDS) {
      if (choice.frame) shownId = chosen;
      return;
    }
    chosen = null;
    const current = processes.get(shownId);
    const patience = transport === "polling" ? 1000 * SILENT_SECONDS : 2500;
    if (current && current.frame && current.id !== process.id && now - current.heard < patience) return;
    if (shownId !== process.id && process.frame) {
      if (current && current.frame) announce(`Now showing process ${process.pid}`);
      shownId = process.id;
    }
  }

  let announced = "";
  function announce(text) {
    if (text !== announced) { announced = text; say(news, text); }
  }

  // ---- The frame of the page

  const news = document.getElementById("news");
  const about = h("span", { class: "about" }, "waiting for the first figures");
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const stateText = h("span", {}, "connecting");
  const picker = h("select", { "aria-label": "Process", onchange: () => {
    chosen = picker.value || null;
    if (chosen) {
      const process = processes.get(chosen);
      // It is asked for anew, however long ago it has answered.
      process.heard = performance.now();
      if (process.frame) shownId = chosen;
    }
    draw();
    askAgain();
  } });
  const pauseButton = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    paused = !paused;
    put(pauseButton, "aria-pressed", String(paused));
    announce(paused ? "Paused" : "Live again");
    drawState();
    if (!paused) draw();
  } }, "Pause");
  picker.hidden = true;
  document.getElementById("top").append(
    h("h1", {}, "synthex-fast"), about,
    h("div", { class: "right" }, picker, h("span", { class: "state" }, dot, stateText), pauseButton));

  function tile(name) {
    const value = h("dd"), extra = h("dd", { class: "note" });
    return { element: h("div", {}, h("dt", {}, name), value, extra), value, extra };
  }
  const tiles = {
    memory: tile("Memory"), pauses: tile("Pauses in requests, p99"), collecting: tile("Time spent collecting"),
    caches: tile("Caches, hit ratio"), leak: tile("Leak"),
  };
  const summary = h("dl", { class: "sum", "aria-label": "Summary" }, ...Object.values(tiles).map((each) => each.element));

  // Memory
  const memory = section("memory", "Memory", "");
  const ranges = h("div", { class: "choice", role: "group", "aria-label": "Time shown" },
    ...[[60, "1 min"], [300, "5 min"], [900, "15 min"], [3600, "1 h"]].map(([value, text]) =>
      h("button", { type: "button", value, "aria-pressed": String(value === range), onclick: () => {
        rangeChosen = true;
        setRange(value);
        draw();
      } }, text)));
  function setRange(value) {
    range = value;
    for (const each of ranges.children) put(each, "aria-pressed", String(Number(each.value) === value));
  }
  memory.head.append(ranges);
  const plot = s("svg", { role: "img", height: "240", "aria-label": "Memory over time" });
  const tip = h("div", { class: "tip" });
  tip.hidden = true;
  const spoken = h("span", { class: "unseen", role: "status", "aria-live": "polite" });
  const chart = h("div", { class: "chart", tabindex: "0", role: "group", "aria-label": "Memory over time. Left and right arrow keys read single moments.", onkeydown: chartKey, onpointermove: chartPoint, onpointerleave: () => { cursor = null; drawMemory(); }, onblur: () => { cursor = null; drawMemory(); } }, plot, tip, spoken);
  const swatch = (kind) => h("span", { class: `swatch ${kind}`, "aria-hidden": "true" });
  const heldSwatch = swatch("");
  heldSwatch.style.background = "var(--fill)";
  const rssKey = h("li", {}, swatch("dash"), "resident");
  const limitKey = h("li", {});
  const heldKey = h("li", {}, heldSwatch, "of that, in caches, pools and buffers");
  const usedText = h("span", {}, "resident memory");
  const memoryKey = h("ul", { class: "key" }, h("li", {}, swatch("line"), usedText), rssKey, heldKey, limitKey);
  const moments = table("Memory at moments", [
    ["Time", (row) => clock(row.at)], ["Counted", (row) => bytes(row.used)], ["Resident", (row) => bytes(row.rss)], ["In components", (row) => bytes(row.held)],
  ], { cards: false, empty: "Nothing yet." });
  const momentDetails = h("details", { ontoggle: () => drawMemory() }, h("summary", {}, "As a table"), moments.element);
  memory.element.append(chart, memoryKey, momentDetails);

  // Leak, governor, siblings
  const leak = section("leak", "Leak", "");
  const verdict = h("p", { class: "verdict" }), verdictText = h("p", { class: "soft" });
  leak.element.append(verdict, verdictText);
  const governor = section("governor", "Governor", "");
  const facts = h("dl", { class: "facts" }), governorNote = h("p", { class: "empty" });
  governor.element.append(facts, governorNote);
  const factCells = new Map();
  function fact(name, text) {
    let cell = factCells.get(name);
    if (!cell) {
      cell = h("dd");
      factCells.set(name, cell);
      facts.append(h("dt", {}, name), cell);
    }
    say(cell, text);
    return cell;
  }
  const fleet = section("siblings", "Siblings in the container", "");
  const fleetText = h("p", { class: "soft" });
  const siblings = table("Sibling processes", [
    ["Process", (each) => (each.pid === undefined ? NONE : `pid ${each.pid}`)],
    ["Caches", (each) => bytes(each.nbytes)],
    ["Share", (each, cell) => metered(cell, share(each.share), shareOf(each.share))],
  ], { cards: false, empty: "" });
  fleet.element.append(fleetText, siblings.element);
  function share(value) { return isNumber(value) && value > 1 ? bytes(value) : percent(value, 0); }
  function shareOf(value) {
    const total = current() && current().fleet ? current().fleet.siblings.reduce((sum, each) => sum + (each.share || 0), 0) : 0;
    return isNumber(value) && value > 1 ? (total ? value / total : null) : value;
  }
  const memoryColumn = h("div", { class: "w8 stack" }, memory.element, fleet.element);
  const beside = h("div", { class: "w4 stack" }, leak.element, governor.element);

  // Collections
  const collections = section("collections", "Collections", "w6");
  const histogram = s("svg", { role: "img", height: "300" });
  const histogramBox = h("div", { class: "chart" }, histogram);
  const causeKey = h("ul", { class: "key" });
  const causeTable = table("Collections by cause", [
    ["Cause", (row, cell) => {
      if (!cell.firstElementChild) {
        const mark = swatch("");
        mark.style.cssText = `background: var(--${row.name}); display: inline-block; margin-right: 8px`;
        cell.replaceChildren(mark, h("span", { class: "name" }, row.name), h("span", { class: "kind" }, CAUSE_TEXT[row.name] || ""));
      }
    }],
    ["Times", (row, cell) => metered(cell, count(row.count), row.share)],
  ], { cards: false, empty: "No collection yet." });
  const collectorEmpty = h("p", { class: "empty" }, "No tuner is shown yet: observe(tuner), or install().");
  collections.element.append(histogramBox, causeKey, causeTable.element, collectorEmpty);
  const causes = section("causes", "By cause", "");

  const generations = section("generations", "Pauses", "");
  const pauseTable = table("Pauses by generation", [
    ["Generation", (row) => row.name], ["Times", (row) => count(row.collections)],
    ["p50", (row) => seconds(row.p50), { class: "least" }], ["p99", (row) => seconds(row.p99)], ["Longest", (row) => seconds(row.max)],
    ["Total", (row) => seconds(row.seconds), { class: "less" }], ["Freed", (row) => count(row.freed), { class: "less" }],
  ], { cards: false, empty: "No tuner is shown yet." });
  const collectorFacts = h("p", { class: "soft" });
  collectorFacts.style.marginTop = "8px";
  generations.element.append(pauseTable.element, collectorFacts);
  const pauseColumn = h("div", { class: "w6 stack" }, generations.element, causes.element);

  // Components
  const evictions = (stats) => (stats.full || 0) + (stats.memory || 0) + (stats.over_cap || 0);
  const caches = section("caches", "Caches", "w12");
  const cacheTable = table("Caches", [
    ["Cache", (each, cell) => named(cell, each.name, each.type)],
    ["Bytes", (each) => bytes(each.nbytes)],
    ["Of its limit", (each, cell) => metered(cell, isNumber(limitOf(each)) ? percent(each.nbytes / limitOf(each), 0) : "no limit", isNumber(limitOf(each)) ? each.nbytes / limitOf(each) : null), { title: "its own memory_limit or the governor's cap, whichever is lower" }],
    ["Entries", (each) => count(each.stats.entries)],
    ["Hit ratio", (each) => (each.stats.hits + each.stats.misses > 0 ? percent(each.stats.hit_rate) : NONE)],
    ["Now", (each) => recent(each), { title: "over the last seconds" }],
    ["Lookups", (each) => rate(each, ["hits", "misses"])],
    ["Evicted: full", (each) => count(each.stats.full), { title: "more entries than max_size" }],
    ["Evicted: memory", (each) => count(each.stats.memory), { title: "more bytes than memory_limit" }],
    ["Evicted: cap", (each) => count(each.stats.over_cap), { title: "more bytes than the governor leaves room for" }],
    ["Expired", (each) => count((each.stats.expired || 0) + (each.stats.idle || 0))],
  ], { empty: "No cache is shown yet: observe(cache, name=\"users\"), or register it with the governor." });
  caches.element.append(cacheTable.element);

  const pools = section("pools", "Pools", "w6");
  const poolTable = table("Pools", [
    ["Pool", (each, cell) => named(cell, each.name, each.type)],
    ["Idle", (each) => count(each.stats.pool_size)],
    ["Bytes", (each) => bytes(each.nbytes)],
    ["Reused", (each) => (each.stats.created + each.stats.reused > 0 ? percent(each.stats.reuse_rate) : NONE)],
    ["Taken", (each) => rate(each, ["created", "reused"])],
    ["Created", (each) => count(each.stats.created)],
    ["Discarded", (each) => count(each.stats.discarded)],
  ], { empty: "No pool is shown yet: observe(pool), or a record type such as observe(PooledExpertQuery)." });
  pools.element.append(poolTable.element);

  const buffers = section("buffers", "Buffers and collectors", "w6");
  const bufferTable = table("Buffers and collectors", [
    ["Buffer", (each, cell) => named(cell, each.name, each.type)],
    ["Bytes", (each) => bytes(each.nbytes)],
    ["Added", (each) => count(each.stats.added)],
    ["Flushed", (each) => count(each.stats.flushed)],
    ["Rejected", (each) => count(each.stats.rejected)],
    ["High water", (each) => count(each.stats.high_water)],
  ], { empty: "No buffer is shown yet: observe(buffer)." });
  buffers.element.append(bufferTable.element);

  const others = section("others", "Other components", "w12");
  const otherTable = table("Other components", [
    ["Component", (each, cell) => named(cell, each.name, each.type)],
    ["Bytes", (each) => bytes(each.nbytes)],
    ["Figures", (each) => Object.entries(each.stats).map(([name, value]) => `${words(name)} ${isNumber(value) ? +value.toPrecision(6) : value}`).join(", ") || NONE, { words: true }],
  ], { empty: "" });
  others.element.append(otherTable.element);

  const decisions = section("decisions", "Decisions", "w12");
  const decisionTable = table("Decisions, latest first", [
    ["What", (entry) => entry.what + (entry.times > 1 ? ` (${count(entry.times)}×)` : "")],
    ["Who", (entry) => entry.who, { class: "lead" }],
    ["When", (entry) => (entry.time === null ? `${seconds(entry.since)} after its start` : clock(entry.time)), { class: "lead" }],
    ["Freed", (entry) => (entry.freed === null ? NONE : entry.unit === "entries" ? `${count(entry.freed)} entries` : bytes(entry.freed))],
    ["Why", (entry) => entry.why, { words: true }],
  ], { empty: "Nothing has been decided yet. What the governor and the tuner do appears here, with the reason." });
  decisions.element.append(decisionTable.element);

  const unread = section("errors", "Could not be read", "w12");
  const unreadTable = table("Components that could not be read", [
    ["Component", (each) => each.name], ["Error", (each) => each.error, { words: true }],
  ], {});
  unread.element.append(unreadTable.element);

  document.getElementById("main").append(summary, h("div", { class: "grid" },
    memoryColumn, beside, collections.element, pauseColumn, caches.element,
    pools.element, buffers.element, others.element, decisions.element, unread.element));

  // ---- Drawing

  const current = () => (processes.get(shownId) || {}).frame;

  function limitOf(each) {
    const { memory_limit: own, memory_cap: cap } = each.stats;
    return isNumber(own) && isNumber(cap) ? Math.min(own, cap) : isNumber(own) ? own : cap;
  }

  // Figures of the same component a few frames earlier.
  function earlier(each) {
    const process = processes.get(shownId);
    return process && process.before ? process.before.components.find((other) => other.name === each.name) : null;
  }
  function growth(each, names) {
    const before = earlier(each);
    if (!before) return null;
    const sum = (stats) => names.reduce((total, name) => total + (stats[name] || 0), 0);
    const process = processes.get(shownId);
    const grown = sum(each.stats) - sum(before.stats), took = process.frame.time - process.before.time;
    return grown >= 0 && took > 0 ? { grown, took } : null;
  }
  function rate(each, names) {
    const found = growth(each, names);
    return found ? `${count(found.grown / found.took)}/s` : NONE;
  }
  function recent(each) {
    const hits = growth(each, ["hits"]), all = growth(each, ["hits", "misses"]);
    return hits && all && all.grown > 0 ? percent(hits.grown / all.grown) : NONE;
  }

  function drawState() {
    const silence = (performance.now() - lastHeard) / 1000;
    const frame = current();
    const patience = Math.max(4, 3 * ((frame && frame.interval) || 1)) + (transport === "polling" ? 4 : 0);
    let kind = "live", text = transport === "polling" ? "polling" : "live";
    if (paused) [kind, text] = ["paused", "paused"];
    else if (!lastHeard) [kind, text] = [transport === "lost" ? "lost" : "", transport === "lost" ? "no answer, trying again" : "connecting"];
    else if (silence > patience) [kind, text] = ["lost", `no answer for ${Math.round(silence)} s, trying again`];
    else if (frame) {
      // Others answer: these figures are old nevertheless.
      const asked = processes.get(chosen) || processes.get(shownId);
      const silent = (performance.now() - asked.heard) / 1000;
      if (!asked.frame) [kind, text] = ["", `asking for pid ${asked.pid}`];
      else if (silent > patience) [kind, text] = ["lost", `pid ${asked.pid} has not answered for ${Math.round(silent)} s`];
    }
    put(dot, "class", `dot ${kind}`);
    const lost = kind === "lost";
    if (lost !== drawState.lost && lastHeard) announce(lost ? "Connection lost, trying again" : "Connected");
    drawState.lost = lost;
    say(stateText, text);
  }

  function draw() {
    drawState();
    const process = processes.get(shownId), frame = current();
    if (!frame || paused) return;
    const seen = processes.size;
    say(about, `${seen > 1 ? `worker pid ${frame.pid} of ${seen} that have answered` : `pid ${frame.pid}`} · Python ${frame.python} · synthex-fast ${frame.version}`);
    drawPicker();
    drawSummary(frame);
    drawMemory();
    drawGovernor(frame);
    drawCollections(frame);
    const of = (...kinds) => frame.components.filter((each) => kinds.includes(each.kind));
    cacheTable.update(of("cache"));
    poolTable.update(of("pool"));
    bufferTable.update(of("buffer", "collector"));
    otherTable.update(of("other"));
    show(others.element, of("other").length > 0);
    const cacheTotal = frame.totals.cache;
    say(caches.aside, cacheTotal ? `${count(cacheTotal.count)} with ${bytes(cacheTotal.nbytes)}${frame.left_out ? `; the largest components are shown, ${count(frame.left_out)} are left out` : ""}` : "");
    decisionTable.update([...process.log].reverse().sort((a, b) => (b.time || 0) - (a.time || 0)).slice(0, 20), (entry) => entry.key);
    say(decisions.aside, process.log.length ? "latest first" : "");
    const errors = Object.entries(frame.errors).map(([name, error]) => ({ name, error }));
    unreadTable.update(errors);
    show(unread.element, errors.length > 0);
  }

  function drawPicker() {
    const all = [...processes.values()].sort((a, b) => a.pid - b.pid);
    show(picker, all.length > 1);
    const wanted = [["", "any process"], ...all.map((each) => [each.id, `pid ${each.pid}`])];
    const have = [...picker.options].map((option) => option.value).join();
    if (have !== wanted.map(([id]) => id).join()) picker.replaceChildren(...wanted.map(([id, text]) => h("option", { value: id }, text)));
    if (document.activeElement !== picker) picker.value = chosen || "";
  }

  function value(cell, text, small = "") {
    if (!cell.firstElementChild) cell.replaceChildren(h("span"), document.createTextNode(" "), h("small"));
    say(cell.firstElementChild, text);
    say(cell.lastElementChild, small);
  }
  let lastLevel = null, lastLeak = null;
  function drawSummary(frame) {
    const shown = frame.memory || {};
    value(tiles.memory.value, bytes(shown.rss), isNumber(shown.limit) ? `of ${bytes(shown.limit)}` : "");
    const levelText = shown.level ? `${percent(shown.share)} of the limit, ` : isNumber(shown.share) ? `${percent(shown.share)} of the limit` : "no limit known: observe(governor)";
    if (!tiles.memory.extra.firstElementChild) tiles.memory.extra.replaceChildren(h("span"), h("span", { class: "level" }));
    say(tiles.memory.extra.firstElementChild, levelText);
    say(tiles.memory.extra.lastElementChild, shown.level || "");
    put(tiles.memory.extra.lastElementChild, "class", `level ${shown.level || ""}`);
    if (lastLevel !== null && shown.level && shown.level !== lastLevel) announce(`Memory level: ${shown.level}, ${percent(shown.share, 0)} of the limit`);
    lastLevel = shown.level || null;
    const tuner = frame.tuner;
    value(tiles.pauses.value, tuner ? (tuner.in_request.collections ? seconds(tuner.in_request.p99) : "none") : NONE);
    say(tiles.pauses.extra, !tuner ? "no tuner is shown" : tuner.in_request.collections
      ? `${count(tuner.in_request.collections)} in ${count(tuner.requests)} requests, longest ${seconds(tuner.in_request.max)}`
      : `in ${count(tuner.requests)} requests`);
    value(tiles.collecting.value, tuner ? percent(tuner.overhead, 2) : NONE);
    say(tiles.collecting.extra, tuner ? `${count(tuner.collections)} collections, ${tuner.running ? tuner.collector : "stopped"}` : "no tuner is shown");
    const total = frame.totals.cache, lookups = total ? (total.hits || 0) + (total.misses || 0) : 0;
    value(tiles.caches.value, lookups ? percent(total.hits / lookups) : NONE, total ? `in ${bytes(total.nbytes)}` : "");
    say(tiles.caches.extra, total ? `${count(total.count)} ${total.count === 1 ? "cache" : "caches"}, ${count(lookups)} lookups` : "no cache is shown");
    const found = frame.monitor && frame.monitor.leak;
    const undecided = found && !found.found && found.text.startsWith("no verdict");
    value(tiles.leak.value, !found ? NONE : found.found ? "found" : undecided ? "too early" : "none");
    put(tiles.leak.value, "class", found && found.found ? "level critical" : "");
    say(tiles.leak.extra, !found ? "no monitor is shown" : found.found ? "see the verdict below" : undecided ? "no verdict yet" : "memory is steady");
    say(verdict, !found ? "" : found.found ? "Memory grows the way a leak does" : undecided ? "No verdict yet" : "No leak");
    put(verdict, "class", found && found.found ? "verdict found" : "verdict");
    show(verdict, Boolean(found));
    say(verdictText, found ? found.text.replace(/^no verdict yet: /, "") : "No monitor is shown yet: observe(monitor). It needs a few hours of history for a verdict.");
    if (lastLeak === false && found && found.found) announce("A memory leak was found");
    lastLeak = found ? found.found : null;
    const title = `${isNumber(shown.share) && shown.level ? `${percent(shown.share, 0)} · ` : ""}pid ${frame.pid} · synthex-fast`;
    if (document.title !== title) document.title = title;
  }

  // ---- Memory over time

  const box = { left: 58, right: 96, top: 8, bottom: 22, height: 240 };
  let cursor = null, drawnRows = [];

  function niceTop(most) {
    const step = 2 ** Math.floor(Math.log2(Math.max(most, 1 << 20)));
    for (const factor of [1, 1.25, 1.5, 2]) if (step * factor >= most) return step * factor;
    return step * 2;
  }

  function drawMemory() {
    const process = processes.get(shownId), frame = current();
    if (!frame) return;
    const shown = frame.memory || {};
    const end = frame.time;
    if (!rangeChosen && process.rows.length) setRange(end - process.rows[0][0] > 60 ? 300 : 60);
    const begin = end - range;
    const rows = process.rows.filter((row) => row[0] >= begin - 10 && isNumber(row[1]));
    drawnRows = rows.filter((row) => row[0] >= begin);
    const width = Math.max(280, chart.clientWidth || 600);
    const narrow = width < 480;
    const left = narrow ? 50 : box.left, right = narrow ? 8 : box.right;
    const usedOf = (row) => (isNumber(row[2]) ? row[2] : row[1]);
    const peak = rows.reduce((most, row) => Math.max(most, usedOf(row), row[1]), 1);
    const limit = isNumber(shown.limit) ? shown.limit : null;
    // A limit far above is left out, or the line would lie on the floor.
    const withLimit = limit !== null && peak > 0.25 * limit;
    const top = withLimit ? Math.max(limit * 1.06, peak * 1.03) : niceTop(peak * 1.1);
    const x = (time) => left + ((time - begin) / range) * (width - left - right);
    const y = (n) => box.top + (1 - n / top) * (box.height - box.top - box.bottom);
    const parts = [];
    put(plot, "viewBox", `0 0 ${width} ${box.height}`);
    for (let n = 0; n <= 4; n++) {
      const value = withLimit ? (limit * n) / 4 : (top * n) / 4;
      parts.push(s("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      parts.push(s("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, round(value)));
    }
    const step = range <= 60 ? 15 : range <= 300 ? 60 : range <= 900 ? 180 : 600;
    for (let time = Math.ceil(begin / step) * step; time <= end; time += step) {
      const label = clock(time);
      const at = x(time);
      if (at > left + 16 && at < width - right - 12) parts.push(s("text", { x: at, y: box.height - 5, "text-anchor": "middle" }, range <= 60 ? label : label.slice(0, 5)));
    }
    // A gap of more than a few intervals is no measurement.
    // The monitor, whose rows know the resident size only, looks less often.
    const gap = Math.max(8, 4 * frame.interval) + (transport === "polling" ? 20 : 0), monitorGap = 70;
    const runs = (of) => {
      const found = [];
      let at = -Infinity, sparse = true;
      for (const row of rows) {
        const value = of(row);
        if (!isNumber(value)) continue;
        const wide = sparse || !isNumber(row[2]);
        sparse = !isNumber(row[2]);
        if (row[0] - at > (wide ? monitorGap : gap)) found.push([]);
        found[found.length - 1].push([x(Math.max(row[0], begin)).toFixed(1), y(value).toFixed(1)]);
        at = row[0];
      }
      return found;
    };
    const path = (of) => runs(of).map((run) => `M${run.map((at) => at.join(" ")).join("L")}`).join("");
    const held = rows.some((row) => isNumber(row[3]));
    const area = runs((row) => row[3]).map((run) => `M${run[0][0]} ${y(0)}L${run.map((at) => at.join(" ")).join("L")}L${run[run.length - 1][0]} ${y(0)}Z`);
    if (held) parts.push(s("path", { class: "held", d: area.join("") }));
    if (withLimit) {
      for (const name of LEVELS) {
        const at = y(limit * frame.levels[name]);
        parts.push(s("line", { class: "mark", stroke: `var(--${name})`, x1: left, x2: width - right, y1: at, y2: at }));
      }
      // The two top marks are 5 points apart: their names are spread to stay legible.
      if (!narrow) {
        const places = [...LEVELS, "limit"].map((name) => ({ name, at: y(name === "limit" ? limit : limit * frame.levels[name]) }));
        for (let n = places.length - 2; n >= 0; n--) places[n].at = Math.max(places[n].at, places[n + 1].at + 13);
        for (const { name, at } of places) parts.push(s("text", { x: width - right + 6, y: at + 4, class: name }, name === "limit" ? "limit" : `${name} ${Math.round(100 * frame.levels[name])} %`));
      }
      parts.push(s("line", { class: "limit", x1: left, x2: width - right, y1: y(limit), y2: y(limit) }));
    }
    const differs = rows.some((row) => isNumber(row[2]) && Math.abs(row[2] - row[1]) > 0.02 * top);
    show(rssKey, differs);
    say(usedText, differs ? "counted against the limit" : "resident memory");
    if (differs) parts.push(s("path", { class: "rss", d: path((row) => row[1]) }));
    parts.push(s("path", { class: "used", d: path(usedOf) }));
    if (cursor !== null && drawnRows.length) {
      cursor = Math.min(Math.max(cursor, 0), drawnRows.length - 1);
      const row = drawnRows[cursor];
      parts.push(s("line", { class: "cross", x1: x(row[0]), x2: x(row[0]), y1: box.top, y2: box.height - box.bottom }));
      parts.push(s("circle", { class: "knob", cx: x(row[0]), cy: y(usedOf(row)), r: 4 }));
      say(tip, momentText(row));
      show(tip, true);
      const half = tip.offsetWidth / 2;
      tip.style.left = `${Math.min(Math.max(x(row[0]) - half, 0), width - 2 * half)}px`;
    } else show(tip, false);
    plot.replaceChildren(...parts);
    say(limitKey, limit === null ? "" : withLimit ? (narrow ? `lines: ${LEVELS.map((name) => `${name} ${Math.round(100 * frame.levels[name])} %`).join(", ")}, limit` : "") : `the limit of ${bytes(limit)} is far above`);
    show(limitKey, limitKey.textContent !== "");
    show(heldKey, held);
    const low = drawnRows.reduce((least, row) => Math.min(least, usedOf(row)), Infinity);
    const covered = drawnRows.length ? end - drawnRows[0][0] : 0;
    say(memory.aside, covered < 3 ? "collecting history" : `${bytes(low)} to ${bytes(peak)} in the last ${seconds(covered)}`);
    put(plot, "aria-label", `Memory over the last ${seconds(Math.max(covered, 1))}: now ${bytes(shown.used)}, lowest ${bytes(low)}, highest ${bytes(peak)}${limit === null ? "" : `, limit ${bytes(limit)}`}.`);
    if (momentDetails.open) {
      const every = Math.max(1, Math.ceil(drawnRows.length / 12));
      moments.update(drawnRows.filter((_, n) => (drawnRows.length - 1 - n) % every === 0).reverse()
        .map((row) => ({ at: row[0], used: usedOf(row), rss: row[1], held: row[3] })), (row) => row.at);
    }
  }
  function momentText(row) {
    const parts = [clock(row[0]), bytes(isNumber(row[2]) ? row[2] : row[1])];
    if (isNumber(row[4]) && row[4] > 0) parts.push(percent((isNumber(row[2]) ? row[2] : row[1]) / row[4]));
    if (isNumber(row[3])) parts.push(`${bytes(row[3])} in components`);
    return parts.join(" · ");
  }
  function chartKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.target !== chart || !drawnRows.length) return;
    if (event.key in moves) cursor = (cursor === null ? drawnRows.length - 1 : cursor) + moves[event.key];
    else if (event.key === "Home") cursor = 0;
    else if (event.key === "End") cursor = drawnRows.length - 1;
    else if (event.key === "Escape") cursor = null;
    else return;
    event.preventDefault();
    drawMemory();
    if (cursor !== null) say(spoken, momentText(drawnRows[cursor]));
  }
  function chartPoint(event) {
    if (!drawnRows.length || !current()) return;
    const bounds = plot.getBoundingClientRect(), width = bounds.width;
    const narrow = width < 480, left = narrow ? 50 : box.left, right = narrow ? 8 : box.right;
    const end = current().time, begin = end - range;
    const time = begin + ((event.clientX - bounds.left - left) / (width - left - right)) * range;
    let best = 0;
    drawnRows.forEach((row, n) => { if (Math.abs(row[0] - time) < Math.abs(drawnRows[best][0] - time)) best = n; });
    cursor = best;
    drawMemory();
  }

  // ---- The rest

  function drawGovernor(frame) {
    const shown = frame.governor;
    show(facts, Boolean(shown));
    say(governorNote, shown ? shown.note || "" : "No governor is shown yet: observe(governor), or install(). It keeps all caches under one limit.");
    show(governorNote, !shown || Boolean(shown.note));
    if (shown) {
      const level = fact("level", shown.level || NONE);
      put(level, "class", `level ${shown.level || ""}`);
      fact("limit", bytes(shown.limit));
      fact("container", shown.container || NONE);
      fact("in components", bytes(shown.nbytes));
      fact("everything else", bytes(shown.rest));
      fact("a cached byte costs", isNumber(shown.overhead) ? `${shown.overhead.toFixed(2)} bytes` : NONE);
      fact("has looked", isNumber(shown.looks) ? `${count(shown.looks)} times, ${seconds(shown.cpu_seconds)}` : NONE);
      const paused = Object.entries(shown.components).filter(([, each]) => each.paused).map(([name]) => name);
      fact("paused", paused.length ? paused.join(", ") : "nothing");
    }
    const family = frame.fleet;
    show(fleet.element, Boolean(family));
    if (family) {
      say(fleetText, [family.state, isNumber(family.workers) ? `${count(family.workers)} workers` : "", isNumber(family.share) ? `this one's share: ${share(family.share)}` : "", family.reason || family.note || ""].filter(Boolean).join(" · "));
      siblings.update(family.siblings, (each) => each.pid);
    }
  }

  function drawCollections(frame) {
    const tuner = frame.tuner;
    show(collectorEmpty, !tuner);
    const bins = tuner && tuner.histogram;
    show(histogramBox, Boolean(bins));
    show(causeKey, Boolean(bins));
    show(causeTable.element, Boolean(tuner));
    // Beside the histogram, or in its place.
    const place = bins ? causes.element : collections.element;
    if (causeTable.element.parentNode !== place) place.append(causeTable.element);
    show(causes.element, Boolean(bins));
    say(collections.aside, tuner ? (bins ? "how many took how long, by cause; the scale of counts is logarithmic" : "by what made them happen") : "");
    if (!tuner) { pauseTable.update([]); say(collectorFacts, ""); return; }
    const total = Object.values(tuner.causes).reduce((sum, n) => sum + n, 0);
    const most = Math.max(1, ...Object.values(tuner.causes));
    causeTable.update(total ? Object.keys(CAUSE_TEXT).filter((name) => name in tuner.causes).map((name) => ({ name, count: tuner.causes[name], share: tuner.causes[name] / most })) : []);
    pauseTable.update([
      ...tuner.generations.map((each, n) => ({ name: ["young", "middle", "full"][n] || String(n), ...each })).filter((each) => tuner.collector !== "free-threaded" || each.collections),
      { name: "in requests", ...tuner.in_request, seconds: null, freed: null },
    ]);
    say(collectorFacts, `${count(tuner.requests)} requests, ${count(tuner.in_flight)} in flight. Young threshold ${count(tuner.young_threshold)}.${tuner.limited ? ` ${count(tuner.limited)} collections were put off: collecting is capped at half of the time.` : ""}`);
    if (bins) drawHistogram(bins);
  }

  function drawHistogram(bins) {
    const width = Math.max(280, histogramBox.clientWidth || 500), height = width > 440 ? 390 : 260, left = 46, right = 18, bottom = 22, top = 10;
    put(histogram, "viewBox", `0 0 ${width} ${height}`);
    put(histogram, "height", String(height));
    const names = CAUSES.filter((name) => bins.causes[name] && bins.causes[name].some((n) => n > 0));
    const sums = bins.bounds.map((_, n) => names.reduce((sum, name) => sum + bins.causes[name][n], 0)).concat(
      names.reduce((sum, name) => sum + bins.causes[name][bins.bounds.length], 0));
    // One collection of 200 ms beside a million short ones must be seen: the scale is logarithmic.
    const most = Math.max(1, ...sums), scale = (n) => (n > 0 ? Math.log10(1 + 9 * n) / Math.log10(1 + 9 * most) : 0);
    let first = sums.findIndex((n) => n > 0), last = sums.length - 1;
    while (last > 0 && !sums[last]) last--;
    first = Math.max(0, first - 1);
    last = Math.min(sums.length - 1, Math.max(last + 1, first + 6));
    const each = (width - left - right) / (last - first + 1), room = height - top - bottom;
    const parts = [];
    const ticks = [0, ...[1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((n) => n < most * 0.7), most];
    for (const tick of ticks) {
      const at = top + room * (1 - scale(tick));
      parts.push(s("line", { class: "axis", x1: left, x2: width - right, y1: at, y2: at }));
      parts.push(s("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, tick >= 1e6 ? `${+(tick / 1e6).toPrecision(2)}M` : tick >= 1e4 ? `${Math.round(tick / 1e3)}k` : count(tick)));
    }
    for (let n = first; n <= last; n++) {
      const x = left + (n - first) * each;
      let y = top + room;
      const tall = room * scale(sums[n]);
      for (const name of names) {
        const part = sums[n] ? (tall * bins.causes[name][n]) / sums[n] : 0;
        // A cause that is there is visible, however rare.
        const drawn = bins.causes[name][n] ? Math.max(part, 1.5) : 0;
        if (drawn) parts.push(s("rect", { x: x + 1, y: y - drawn, width: Math.max(1, each - 2), height: drawn, fill: `var(--${name})` }));
        y -= drawn;
      }
      const bound = n < bins.bounds.length ? bins.bounds[n] : null;
      const every = Math.ceil(46 / each);
      if ((n - first) % every === every - 1 || every === 1) parts.push(s("text", { x: x + each, y: height - 6, "text-anchor": "middle" }, bound === null ? "more" : bin(bound)));
    }
    histogram.replaceChildren(...parts);
    const keys = names.map((name) => `${name}: ${CAUSE_TEXT[name]}`);
    if (causeKey.dataset.names !== names.join()) {
      causeKey.dataset.names = names.join();
      causeKey.replaceChildren(...names.map((name) => {
        const mark = swatch("");
        mark.style.background = `var(--${name})`;
        return h("li", {}, mark, name);
      }));
    }
    put(histogram, "aria-label", names.length ? `Histogram of pauses by cause, on a logarithmic scale. ${keys.join("; ")}. The counts are in the table that follows.` : "No pause yet.");
  }

  // ---- Transport: a stream; where the server has no room for one, a question every few seconds.

  let source = null, poll = null, streamAgain = null, streamTries = 0;
  const data = (event) => { try { return JSON.parse(event.data); } catch { return null; } };

  function received(frame) {
    if (!frame) return;
    takeFrame(frame);
    if (!document.hidden) draw();
  }
  function connect() {
    clearTimeout(streamAgain);
    if (source) source.close();
    source = new EventSource(`${base}events`);
    source.addEventListener("open", () => { stopPolling(); transport = "live"; });
    source.addEventListener("history", (event) => {
      const history = data(event);
      if (!history) return;
      takeHistory(history);
      // Another worker's stream: the next connection may lead to the right one.
      if (wanted() && history.id !== wanted() && streamTries < 2 * TRIES) {
        streamTries++;
        source.close();
        streamAgain = setTimeout(connect, 50);
      } else streamTries = 0;
    });
    source.addEventListener("message", (event) => received(data(event)));
    source.addEventListener("poll", (event) => {
      source.close();
      // The place may be that of the stream that was left just now, which the server has yet to notice.
      if (streamTries && streamTries++ < 2 * TRIES) streamAgain = setTimeout(connect, 1200);
      else startPolling(Number(event.data) || 2);
    });
    source.addEventListener("error", () => {
      drawState();
      // The browser comes back by itself unless the answer was no stream at all.
      if (source.readyState === EventSource.CLOSED) { if (!poll) transport = "lost"; streamAgain = setTimeout(connect, 1000); }
    });
  }
  async function question(id) {
    const answer = await fetch(`${base}frame${id ? `?of=${encodeURIComponent(id)}` : ""}`, { cache: "no-store" });
    if (!answer.ok) return null;
    const frame = await answer.json();
    received(frame);
    return frame.id;
  }
  async function ask() {
    try {
      const id = wanted();
      if ((await question(id)) !== id && id) {
        // All at once, over connections of their own: one that is kept open leads to the same worker each time.
        await Promise.allSettled(Array.from({ length: TRIES - 1 }, () => question(id)));
      }
    } catch { /* The worker is being replaced: the next question tells. */ }
    drawState();
  }
  // A stream comes from one worker: which others there are is asked now and then, by an id that nobody has.
  function discover() {
    if (document.hidden) return;
    Promise.allSettled(Array.from({ length: TRIES }, () => question("-"))).then(() => {
      // No way has led to the chosen one yet.
      if (chosen && chosen !== shownId) askAgain();
    });
  }
  function askAgain() {
    if (poll) ask();
    else { streamTries = 0; connect(); }
  }
  function startPolling(every) {
    if (poll) return;
    transport = "polling";
    fetch(`${base}history`, { cache: "no-store" }).then((answer) => answer.json()).then(takeHistory).catch(() => {}).then(ask);
    poll = setInterval(() => { if (!document.hidden) ask(); }, 1000 * every);
    streamAgain = setTimeout(connect, 60000);
  }
  function stopPolling() {
    clearInterval(poll);
    poll = null;
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) draw(); });
  addEventListener("resize", () => draw());
  setInterval(drawState, 1000);
  setTimeout(discover, 1000);
  setInterval(discover, 1000 * DISCOVER_SECONDS);
  connect();
})();
