"use strict";
// The strip of heads, and the chosen head drawn large by circuitsvis.
(async () => {
  const POINTING_MS = 120; // passing over a head on the way to another draws nothing
  const THUMBNAIL = 96; // pixels

  const byId = (id) => document.getElementById(id);
  const { tokens, labels, full, color } = JSON.parse(byId("data").textContent);
  const n = tokens.length;
  const buttons = [...byId("heads").children];

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream);
  }

  // Lower triangles, row after row, head after head; 255 is attention 1.
  function readRows(values, head) {
    const start = (head * n * (n + 1)) / 2;
    return tokens.map((_, query) => {
      const row = start + (query * (query + 1)) / 2;
      return values.subarray(row, row + query + 1);
    });
  }

  // More cells than pixels: a pixel shows the largest of its cells, so that thin lines stay.
  function drawThumbnail(canvas, rows, fullColor) {
    const step = Math.ceil(n / THUMBNAIL);
    const side = Math.ceil(n / step);
    const largest = new Uint8Array(side * side);
    rows.forEach((row, query) => {
      const line = Math.floor(query / step) * side;
      row.forEach((value, key) => {
        const place = line + Math.floor(key / step);
        largest[place] = Math.max(largest[place], value);
      });
    });
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const image = context.createImageData(side, side);
    largest.forEach((value, place) => {
      const share = Math.min(1, value / fullColor);
      color.forEach((channel, i) => {
        image.data[4 * place + i] = 255 + share * (channel - 255);
      });
      image.data[4 * place + 3] = 255;
    });
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
      positiveColor: `rgb(${color.join(", ")})`,
      zoomed: true,
    });
    return place;
  }

  const painted = () =>
    new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  const values = new Uint8Array(await (await unpack("attention")).arrayBuffer());
  buttons.forEach((button, head) => {
    drawThumbnail(button.querySelector("canvas"), readRows(values, head), full[head]);
  });

  const script = document.createElement("script");
  script.textContent = await (await unpack("circuitsvis")).text();
  document.head.append(script);

  const patterns = new Map();
  let kept = 0;
  let timer;

  async function show(head) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === head));
    const detail = document.createElement("span");
    detail.textContent = ` · full colour from ${(full[head] / 255).toFixed(2)} up`;
    byId("shown").replaceChildren(labels[head], detail);
    await painted(); // the choice shows before the pattern, which may take a moment
    if (!patterns.has(head)) patterns.set(head, drawPattern(readRows(values, head), head));
    patterns.forEach((place, i) => (place.hidden = i !== head));
    await painted();
    byId("pattern").dataset.head = head;
  }

  function soon(head) {
    clearTimeout(timer);
    timer = setTimeout(() => show(head), POINTING_MS);
  }

  buttons.forEach((button, head) => {
    button.addEventListener("pointerenter", () => soon(head));
    button.addEventListener("pointerleave", () => soon(kept));
    button.addEventListener("click", () => {
      kept = head;
      soon(head);
    });
  });
  show(kept);
})().catch((error) => {
  document.getElementById("shown").textContent =
    `This browser cannot draw the patterns (${error.message}).`;
});
