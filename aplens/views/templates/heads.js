"use strict";
// The strip of heads, the chosen head drawn large, and the keys of a query in words.
// Everywhere attention, habit and their difference count in steps of 1/255.
(async () => {
  const POINTING_MS = 120; // passing over a head on the way to another draws nothing
  const LISTED = 8; // keys of a query
  const LEAST = 2; // steps that are written as 0.01
  const LEAST_BEYOND = 3; // steps, about 0.01: twice what rounding can make of no difference
  const LABEL_HEIGHT = 13; // pixels, so that labels at the axes do not touch
  const LONGEST_LABEL = 170; // pixels

  const byId = (id) => document.getElementById(id);
  const { tokens, positions, labels, full, fullDifference, before, side } = JSON.parse(
    byId("data").textContent,
  );
  const n = tokens.length;
  const buttons = [...byId("heads").children];
  const hasHabit = fullDifference !== null;
  const name = (index) => `${tokens[index]} (${positions[index]})`;
  const number = (value) => (value / 255).toFixed(2);

  function element(tag, ...content) {
    const made = document.createElement(tag);
    made.append(...content);
    return made;
  }

  // Values: lower triangles, row after row, head after head; 255 is attention 1.

  async function unpackValues(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const attention = await unpackValues("attention");
  const habit = hasHabit ? await unpackValues("habit") : null;

  function readRow(values, head, query) {
    const start = (head * n * (n + 1)) / 2 + (query * (query + 1)) / 2;
    return values.subarray(start, start + query + 1);
  }

  const readRows = (values, head) => tokens.map((_, query) => readRow(values, head, query));

  const difference = (head, query) => {
    const expected = readRow(habit, head, query);
    return Array.from(readRow(attention, head, query), (value, key) => value - expected[key]);
  };

  // Colours: the paper's at 0, full at a share of 1 or more.

  let colors;

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    const read = (color) => style.getPropertyValue(`--${color}`).trim().split(" ").map(Number);
    colors = { paper: read("paper"), attention: read("attention"), more: read("more"), less: read("less") };
  }

  const mix = (color, share) =>
    colors.paper.map((channel, i) =>
      Math.round(channel + Math.min(1, share) * (colors[color][i] - channel)),
    );

  // One scale for all heads, so that they can be compared, or each its own, so that all are seen.
  const fullOf = (head) => (byId("own").checked ? full[head] : Math.max(...full));
  const attentionColor = (head) => {
    const most = fullOf(head);
    return (value) => mix("attention", value / most);
  };
  const differenceColor = (value) =>
    mix(value > 0 ? "more" : "less", Math.abs(value) / fullDifference);

  // Black or white, whichever is read better on a colour.
  function inkOn(color) {
    const linear = (c) => (c <= 10 ? c / 3294 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const [red, green, blue] = color.map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  }

  // At most `most` pixels a side. A pixel shows the largest of its cells, so that lines stay.
  function drawPattern(canvas, rows, colorOf, most) {
    const step = Math.ceil(n / most);
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

  function drawHead(button, head) {
    const rowsOf = {
      attention: () => readRows(attention, head),
      habit: () => readRows(habit, head),
      difference: () => tokens.map((_, query) => difference(head, query)),
    };
    button.querySelectorAll("canvas").forEach((canvas) => {
      const { shows } = canvas.dataset;
      const colorOf = shows === "difference" ? differenceColor : attentionColor(head);
      drawPattern(canvas, rowsOf[shows](), colorOf, side);
    });
  }

  function drawAll() {
    readColors();
    buttons.forEach(drawHead);
    show(current);
  }

  // Heads

  let kept = 0;
  let current = 0;
  let timer;

  function show(head) {
    current = head;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === head));
    byId("shown").textContent = labels[head];
    byId("full").textContent = `${number(fullOf(head))} or more`;
    drawPattern(byId("cells").firstChild, readRows(attention, head), attentionColor(head), n);
    byId("pattern").dataset.head = head;
    describeQuery();
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

  // The names of tokens at the axes, as many as can be read, and always the last.

  function labelAxes() {
    const step = Math.ceil((n * LABEL_HEIGHT) / byId("cells").clientHeight);
    for (const [axis, edge] of [["queries", "top"], ["keys", "left"]]) {
      const named = tokens.flatMap((_, i) => {
        if ((n - 1 - i) % step) return [];
        const label = element("span", name(i));
        label.style[edge] = `${((i + 0.5) / n) * 100}%`;
        return [label];
      });
      byId(axis).replaceChildren(...named);
    }
    const thinned = step > 1 ? ` One token in ${step} is named; point at a cell for the others.` : "";
    byId("axes").textContent = `Queries run down, keys to the right.${thinned}`;
  }

  function makeRoomForLabels() {
    const context = document.createElement("canvas").getContext("2d");
    context.font = getComputedStyle(byId("queries")).font;
    const widest = Math.max(...tokens.map((_, i) => context.measureText(name(i)).width));
    const width = Math.min(LONGEST_LABEL, Math.ceil(widest) + 14);
    byId("pattern").style.setProperty("--label", `${width}px`);
  }

  // Queries

  let locked = null;
  let pointed = null;

  const shownQuery = () => locked ?? pointed ?? n - 1;

  const words = byId("tokens");
  words.append(...tokens.map((token) => element("span", token || " ")));

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
    const tables = element("div", listKeys("Attends most to", largest(row, LEAST), rows, "none by 0.01 or more"));
    let beyond = [];
    if (hasHabit) {
      beyond = largest(difference(current, query), LEAST_BEYOND);
      tables.append(listKeys("Beyond its habit", beyond, rows, "none by 0.01 or more"));
    }
    const state = locked === null ? (pointed === null ? " · last" : "") : " · kept";
    const title = element("p", `Query ${name(query)}`, element("span", state));
    byId("query").replaceChildren(title, tables);
    if (before !== null) {
      const share = before[current][query].toFixed(2);
      tables.before(element("p", `To the tokens before these: ${share}`));
    }
    shadeTokens(query, row, beyond);
    frameRow(query);
  }

  // Each token in the colour of the attention that the query pays to it.
  function shadeTokens(query, row, beyond) {
    const colorOf = attentionColor(current);
    [...words.children].forEach((word, key) => {
      const color = colorOf(key <= query ? row[key] : 0);
      word.style.background = `rgb(${color})`;
      word.style.color = inkOn(color);
      word.classList.toggle("beyond", beyond.includes(key));
      word.classList.toggle("query", key === query);
    });
  }

  function frameRow(query) {
    const frame = byId("row");
    frame.hidden = locked === null && pointed === null;
    frame.style.top = `${(query / n) * 100}%`;
    frame.style.height = `${100 / n}%`;
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

  // The cell under the pointer. The labels at the left belong to their rows, without a key.
  function cellAt(event) {
    const box = byId("cells").getBoundingClientRect();
    const query = Math.floor(((event.clientY - box.top) / box.height) * n);
    const key = Math.floor(((event.clientX - box.left) / box.width) * n);
    return query >= 0 && query < n && key < n ? { query, key } : { query: null, key: null };
  }

  for (const [place, queryAt] of [
    [words, tokenAt],
    [byId("pattern"), (event) => cellAt(event).query],
  ]) {
    place.addEventListener("pointermove", (event) => point(queryAt(event)));
    place.addEventListener("pointerleave", () => point(null));
    place.addEventListener("click", (event) => toggle(queryAt(event)));
  }
  byId("pattern").addEventListener("pointermove", reveal);

  byId("cells").addEventListener("pointermove", (event) => {
    const { query, key } = cellAt(event);
    const tip = byId("tip");
    tip.hidden = query === null || key < 0 || key > query;
    if (tip.hidden) return;
    const values = [`attention ${number(readRow(attention, current, query)[key])}`];
    if (hasHabit) values.push(`habit ${number(readRow(habit, current, query)[key])}`);
    tip.textContent = `query ${name(query)}\nkey ${name(key)}\n${values.join(", ")}`;
    // Above the row in the lower half, to the left in the right one: always inside.
    const [above, left] = [query > n / 2, key > n / 2];
    tip.style.top = `${((query + (above ? 0 : 1)) / n) * 100}%`;
    tip.style.left = `${((key + (left ? 1 : 0)) / n) * 100}%`;
    tip.style.transform = `translate(${left ? "-100%" : "0"}, ${above ? "calc(-100% - 5px)" : "5px"})`;
  });
  byId("cells").addEventListener("pointerleave", () => (byId("tip").hidden = true));

  // Scroll the tokens, not the page, to the query.
  function reveal() {
    const { offsetTop, offsetHeight } = words.children[shownQuery()];
    const above = offsetTop < words.scrollTop;
    const below = offsetTop + offsetHeight > words.scrollTop + words.clientHeight;
    if (above || below) words.scrollTop = offsetTop - (words.clientHeight - offsetHeight) / 2;
  }

  // Search. What is found may go over several tokens; Enter keeps its last one as the query.

  const lower = tokens.map((token) => token.toLowerCase());
  const owners = lower.flatMap((token, i) => new Array(token.length).fill(i));
  let found = [];
  let turn = -1;

  function search() {
    const text = lower.join("");
    const wanted = byId("find").value.toLowerCase().replaceAll(" ", "·");
    found = [];
    turn = -1;
    for (let at = 0; wanted && (at = text.indexOf(wanted, at)) >= 0; at += wanted.length) {
      found.push([owners[at], owners[at + wanted.length - 1]]);
    }
    const isFound = (i) => found.some(([first, last]) => first <= i && i <= last);
    [...words.children].forEach((word, i) => word.classList.toggle("found", isFound(i)));
    byId("found").textContent = wanted && `${found.length || "none"} found`;
  }

  function turnToFound() {
    if (found.length === 0) return;
    turn = (turn + 1) % found.length;
    byId("found").textContent = `${turn + 1} of ${found.length}`;
    lock(found[turn][1]);
    reveal();
  }

  byId("find").addEventListener("input", search);
  byId("find").addEventListener("keydown", (event) => {
    event.stopPropagation(); // the arrows move in the text
    if (event.key === "Enter") turnToFound();
    if (event.key !== "Escape") return;
    byId("find").value = "";
    search();
    byId("view").focus();
  });

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

  if (hasHabit) {
    const end = number(fullDifference);
    byId("least").textContent = `−${end} or less`;
    byId("most").textContent = `+${end} or more`;
  }
  byId("own").parentElement.hidden = buttons.length === 1;
  byId("own").addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  makeRoomForLabels();
  new ResizeObserver(labelAxes).observe(byId("cells"));
  drawAll();
})().catch((error) => {
  document.getElementById("shown").textContent =
    `This browser cannot draw the patterns (${error.message}).`;
});
