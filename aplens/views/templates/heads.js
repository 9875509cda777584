"use strict";
// The strip of heads, the chosen head drawn large by circuitsvis, and the keys of a query in words.
// Everywhere attention, habit and their difference count in steps of 1/255.
(async () => {
  const POINTING_MS = 120; // passing over a head on the way to another draws nothing
  const MOST_FRAMES = 600; // to wait for circuitsvis
  const LISTED = 5; // keys of a query
  const LEAST_BEYOND = 3; // steps, about 0.01: twice what rounding can make of no difference

  const byId = (id) => document.getElementById(id);
  const { tokens, labels, full, fullDifference, colors, side } = JSON.parse(
    byId("data").textContent,
  );
  const n = tokens.length;
  const buttons = [...byId("heads").children];
  const hasHabit = fullDifference !== null;

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream);
  }

  const unpackValues = async (id) => new Uint8Array(await (await unpack(id)).arrayBuffer());

  // Lower triangles, row after row, head after head; 255 is attention 1.
  function readRow(values, head, query) {
    const start = (head * n * (n + 1)) / 2 + (query * (query + 1)) / 2;
    return values.subarray(start, start + query + 1);
  }

  const readRows = (values, head) => tokens.map((_, query) => readRow(values, head, query));

  // White at 0, the full colour at a share of 1 or more.
  const mix = (color, share) =>
    color.map((channel) => Math.round(255 + Math.min(1, share) * (channel - 255)));

  const attentionColor = (head) => (value) => mix(colors.attention, value / full[head]);
  const differenceColor = (value) =>
    mix(value > 0 ? colors.more : colors.less, Math.abs(value) / fullDifference);

  // More cells than pixels: a pixel shows the largest of its cells, so that thin lines stay.
  function drawThumbnail(canvas, rows, colorOf) {
    const step = Math.ceil(n / side);
    const width = Math.ceil(n / step);
    const largest = new Int16Array(width * width);
    rows.forEach((row, query) => {
      const line = Math.floor(query / step) * width;
      row.forEach((value, key) => {
        const place = line + Math.floor(key / step);
        if (Math.abs(value) > Math.abs(largest[place])) largest[place] = value;
      });
    });
    canvas.width = canvas.height = width;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, width);
    largest.forEach((value, place) => image.data.set([...colorOf(value), 255], 4 * place));
    context.putImageData(image, 0, 0);
  }

  // Attention that rounds to 0 would be drawn white, at the same cost as any other. It becomes a
  // hole, which `map` and `flat`, by which circuitsvis reads the rows, pass over.
  function visibleCells(row) {
    const cells = new Array(row.length);
    row.forEach((value, key) => {
      if (value > 0) cells[key] = Number((value / 255).toFixed(3));
    });
    return cells;
  }

  function drawPattern(rows, head) {
    const place = document.createElement("div");
    place.id = `pattern-${head}`;
    byId("pattern").append(place);
    CircuitsVis.render(place.id, CircuitsVis.AttentionPattern, {
      attention: rows.map(visibleCells),
      tokens,
      minValue: 0,
      maxValue: full[head] / 255,
      positiveColor: `rgb(${colors.attention.join(", ")})`,
      zoomed: true,
    });
    return place;
  }

  // Where in the page the cells of the large pattern are. circuitsvis hands out no chart; React,
  // with which it draws, keeps the chart among the hooks of what the canvas belongs to.
  function cellsArea() {
    const canvas = patterns.get(current)?.querySelector("canvas");
    if (!canvas) return null;
    const name = Object.keys(canvas).find((key) => key.startsWith("__reactFiber$"));
    let hook = canvas[name].return.memoizedState;
    while (hook && !hook.memoizedState?.current?.chartArea) hook = hook.next;
    if (!hook) return null; // React has not drawn it yet
    const { left, top, width, height } = hook.memoizedState.current.chartArea;
    const box = canvas.getBoundingClientRect();
    return { left: box.left + left, top: box.top + top, width, height };
  }

  const painted = () =>
    new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  const attention = await unpackValues("attention");
  const habit = hasHabit ? await unpackValues("habit") : null;

  const difference = (head, query) => {
    const expected = readRow(habit, head, query);
    return Array.from(readRow(attention, head, query), (value, key) => value - expected[key]);
  };

  buttons.forEach((button, head) => {
    const draw = {
      attention: (canvas) =>
        drawThumbnail(canvas, readRows(attention, head), attentionColor(head)),
      habit: (canvas) => drawThumbnail(canvas, readRows(habit, head), attentionColor(head)),
      difference: (canvas) => {
        const rows = tokens.map((_, query) => difference(head, query));
        drawThumbnail(canvas, rows, differenceColor);
      },
    };
    button.querySelectorAll("canvas").forEach((canvas) => draw[canvas.dataset.shows](canvas));
  });
  if (hasHabit) {
    const end = (fullDifference / 255).toFixed(2);
    byId("least").textContent = `−${end} or less`;
    byId("most").textContent = `+${end} or more`;
  }

  const script = document.createElement("script");
  script.textContent = await (await unpack("circuitsvis")).text();
  document.head.append(script);

  const patterns = new Map();
  let kept = 0; // heads
  let current = 0;
  let timer;
  let locked = null; // queries
  let pointed = null;

  // Heads

  async function show(head) {
    current = head;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === head));
    const detail = document.createElement("span");
    detail.textContent = ` · full colour from ${(full[head] / 255).toFixed(2)} up`;
    byId("shown").replaceChildren(labels[head], detail);
    describeQuery();
    await painted(); // the choice shows before the pattern, which may take a moment
    if (!patterns.has(head)) patterns.set(head, drawPattern(readRows(attention, head), head));
    patterns.forEach((place, i) => (place.hidden = i !== current));
    for (let tries = 0; cellsArea() === null; tries++) {
      if (tries === MOST_FRAMES) throw new Error("circuitsvis drew no chart");
      await painted();
    }
    if (head !== current) return;
    byId("pattern").dataset.head = head;
    markRow();
  }

  function soon(head) {
    clearTimeout(timer);
    timer = setTimeout(() => show(head), POINTING_MS);
  }

  function keep(head) {
    kept = head;
    soon(head);
  }

  buttons.forEach((button, head) => {
    button.addEventListener("pointerenter", () => soon(head));
    button.addEventListener("pointerleave", () => soon(kept));
    button.addEventListener("click", () => keep(head));
  });

  // Queries

  const shownQuery = () => locked ?? pointed ?? n - 1;

  const words = byId("tokens");
  words.append(...tokens.map((token) => element("span", token || " ")));

  function element(tag, ...content) {
    const made = document.createElement(tag);
    made.append(...content);
    return made;
  }

  const number = (value) => (value / 255).toFixed(2);
  const name = (position) => `${tokens[position]} (${position})`;

  function listKeys(caption, keys, rows, nothing) {
    const line = (kind, first, ...rest) =>
      element("tr", ...[first, ...rest].map((text) => element(kind, text)));
    const lines = keys.map((key) => line("td", name(key), ...rows.map((row) => number(row[key]))));
    return element(
      "table",
      element("caption", caption),
      line("th", "key", "attention", ...(rows.length > 1 ? ["habit"] : [])),
      ...(lines.length ? lines : [line("td", nothing)]),
    );
  }

  // The keys with the largest values, the largest first, none below `least`.
  const largest = (values, least) =>
    [...values.keys()]
      .filter((key) => values[key] >= least)
      .sort((a, b) => values[b] - values[a])
      .slice(0, LISTED);

  function describeQuery() {
    const query = shownQuery();
    const row = readRow(attention, current, query);
    const rows = hasHabit ? [row, readRow(habit, current, query)] : [row];
    const tables = element("div", listKeys("Attends most to", largest(row, 1), rows, "none"));
    let beyond = [];
    if (hasHabit) {
      beyond = largest(difference(current, query), LEAST_BEYOND);
      tables.append(listKeys("Beyond its habit", beyond, rows, "none by 0.01 or more"));
    }
    const state = locked === null ? (pointed === null ? " · last" : "") : " · kept";
    const title = element("p", `Query ${name(query)}`, element("span", state));
    byId("query").replaceChildren(title, tables);
    shadeTokens(query, row, beyond);
    markRow();
  }

  // Each token in the colour of the attention that the query pays to it, at most half as strong:
  // dark text stays legible.
  function shadeTokens(query, row, beyond) {
    [...words.children].forEach((word, key) => {
      const share = key <= query ? Math.min(1, row[key] / full[current]) : 0;
      word.style.background = `rgb(${mix(colors.attention, share / 2).join(", ")})`;
      word.classList.toggle("beyond", beyond.includes(key));
      word.classList.toggle("query", key === query);
    });
  }

  function markRow() {
    const area = cellsArea();
    const frame = byId("row");
    frame.hidden = area === null || (locked === null && pointed === null);
    if (frame.hidden) return;
    const origin = byId("pattern").getBoundingClientRect();
    const height = area.height / n;
    Object.assign(frame.style, {
      left: `${area.left - origin.left - 2}px`,
      top: `${area.top - origin.top + shownQuery() * height - 2}px`,
      width: `${area.width + 4}px`,
      height: `${height + 4}px`,
    });
  }

  function point(query) {
    if (query === pointed) return;
    pointed = query;
    if (locked === null) describeQuery();
  }

  function lock(query) {
    locked = query;
    describeQuery();
  }

  const toggle = (query) => query !== null && lock(query === locked ? null : query);

  const tokenAt = (event) => {
    const query = [...words.children].indexOf(event.target);
    return query < 0 ? null : query;
  };

  function rowAt(event) {
    const area = cellsArea();
    if (area === null) return null;
    const across = (event.clientX - area.left) / area.width;
    const query = Math.floor(((event.clientY - area.top) / area.height) * n);
    return query >= 0 && query < n && across <= 1 ? query : null; // the labels belong to their rows
  }

  for (const [place, queryAt] of [
    [words, tokenAt],
    [byId("pattern"), rowAt],
  ]) {
    place.addEventListener("pointermove", (event) => point(queryAt(event)));
    place.addEventListener("pointerleave", () => point(null));
    place.addEventListener("click", (event) => toggle(queryAt(event)));
  }
  byId("pattern").addEventListener("pointermove", reveal);

  // Scroll the tokens, not the page, to the query.
  function reveal() {
    const { offsetTop, offsetHeight } = words.children[shownQuery()];
    const above = offsetTop < words.scrollTop;
    const below = offsetTop + offsetHeight > words.scrollTop + words.clientHeight;
    if (above || below) words.scrollTop = offsetTop - (words.clientHeight - offsetHeight) / 2;
  }

  // Keys

  const within = (index, length) => Math.max(0, Math.min(length - 1, index));

  function turnToHead(step) {
    const onButton = buttons.includes(document.activeElement);
    keep(within(kept + step, buttons.length));
    buttons[kept].scrollIntoView({ block: "nearest" });
    if (onButton) buttons[kept].focus();
  }

  function turnToQuery(step) {
    lock(within(shownQuery() + step, n));
    reveal();
  }

  const KEYS = {
    ArrowLeft: () => turnToHead(-1),
    ArrowRight: () => turnToHead(1),
    ArrowUp: () => turnToQuery(-1),
    ArrowDown: () => turnToQuery(1),
    Escape: () => lock(null),
  };

  byId("view").addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); // nothing scrolls
    KEYS[event.key]();
  });
  window.addEventListener("resize", async () => {
    await painted();
    markRow();
  });

  await show(kept);
})().catch((error) => {
  document.getElementById("shown").textContent =
    `This browser cannot draw the patterns (${error.message}).`;
});
