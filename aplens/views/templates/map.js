"use strict";
// A map of heads: the scatter, a grid for each model, and the chosen head in words and pictures.
// A head is a number, its place in every list of `heads`.
(async () => {
  const REACH = 16; // how near one must point, in the scatter's units
  const SIZE = 5; // half of a mark's width, in the same
  const LISTED = 10; // heads of a group
  const GRID_WIDTH = 200; // at most, in pixels
  // The models' shapes, in the order of the figure's; from the seventh model on they come again.
  const SHAPES = [
    (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`, // circle
    (r) => `M0 ${-1.25 * r}L${1.2 * r} ${0.9 * r}H${-1.2 * r}Z`, // triangle
    (r) => `M${-0.9 * r} ${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`, // square
    (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`, // diamond
    (r) => `M0 ${1.25 * r}L${1.2 * r} ${-0.9 * r}H${-1.2 * r}Z`, // triangle upside down
    (r) => drawPlus(1.2 * r, 0.4 * r), // plus
  ];

  // Arms that reach so far, each twice as broad as `half`.
  function drawPlus(reach, half) {
    const arm = reach - half;
    return (
      `M${-half} ${-reach}h${2 * half}v${arm}h${arm}v${2 * half}h${-arm}v${arm}` +
      `h${-2 * half}v${-arm}h${-arm}v${-2 * half}h${arm}Z`
    );
  }

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { heads, models, groups, templates, palette, side } = data;
  const every = heads.model.map((_, place) => place);

  const bytes = Uint8Array.from(atob(byId("pictures").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const pictures = new Uint8Array(await new Response(stream).arrayBuffer());

  const nameOf = (place) => `L${heads.layer[place]}H${heads.head[place]}`;
  const modelOf = (place) => models[heads.model[place]].name;
  const templateOf = (place) => templates[heads.template[place]];
  const readable = (name) => name.replaceAll("_", " ");
  const percent = (share) => `${Math.round(100 * share)} %`;
  const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const placeOf = new Map(
    every.map((place) => [`${heads.model[place]} ${nameOf(place)}`, place]),
  );
  const groupOf = new Map(
    groups.flatMap((group, number) => group.members.map((place) => [place, number])),
  );

  function element(tag, properties, ...content) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...content);
    return made;
  }

  function svg(tag, attributes, ...content) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  function drawPicture(place) {
    const canvas = element("canvas", { width: side, height: side });
    const context = canvas.getContext("2d");
    const image = context.createImageData(side, side);
    let from = (place * side * (side + 1)) / 2;
    for (let row = 0; row < side; row++) {
      for (let column = 0; column <= row; column++) {
        image.data.set([...palette[pictures[from++]], 255], 4 * (row * side + column));
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  // The scatter. Lines lie below the marks, rings above.

  const scatter = byId("scatter");
  const shapeOf = (model) => SHAPES[model % SHAPES.length];
  const lines = svg("g", {});
  const marks = every.map((place) =>
    svg("path", {
      class: `t-${templateOf(place)}`,
      d: shapeOf(heads.model[place])(SIZE),
      transform: `translate(${heads.place[place].join(" ")})`,
      "data-head": `${modelOf(place)} ${nameOf(place)}`,
    }),
  );
  const ring = svg("circle", { id: "ring", r: SIZE + 5, visibility: "hidden" });
  const pointedRing = svg("circle", { id: "pointed", r: SIZE + 4, visibility: "hidden" });
  scatter.append(lines, ...marks, pointedRing, ring);

  function moveRing(circle, place) {
    circle.setAttribute("visibility", place === null ? "hidden" : "visible");
    if (place === null) return;
    const [x, y] = heads.place[place];
    circle.setAttribute("cx", x);
    circle.setAttribute("cy", y);
  }

  function headAt(event) {
    const box = scatter.getBoundingClientRect();
    const scale = scatter.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    let best = null;
    let nearest = REACH;
    for (const place of every) {
      if (marks[place].classList.contains("dim")) continue;
      const distance = Math.hypot(heads.place[place][0] - x, heads.place[place][1] - y);
      if (distance < nearest) [best, nearest] = [place, distance];
    }
    return best;
  }

  // The grids

  const cells = new Array(every.length);

  function drawGrid(model, number) {
    const cell = Math.max(5, Math.min(13, Math.floor(GRID_WIDTH / model.width)));
    const left = 16;
    const top = 11;
    const grid = svg("svg", {
      class: "grid",
      width: left + model.width * cell + 2,
      height: top + model.layers * cell + 2,
      role: "img",
      "aria-label": `Layers down, heads across, of ${model.name}`,
    });
    const every5 = (n) => [...Array(n).keys()].filter((i) => i % 5 === 0);
    for (const layer of every5(model.layers)) {
      grid.append(svg("text", { x: left - 3, y: top + layer * cell + 9 }, String(layer)));
    }
    for (const head of every5(model.width)) {
      const x = left + (head + 0.5) * cell;
      grid.append(svg("text", { class: "head", x, y: top - 2 }, String(head)));
    }
    for (const place of every) {
      if (heads.model[place] !== number) continue;
      cells[place] = svg("rect", {
        class: `t-${templateOf(place)}`,
        x: left + heads.head[place] * cell + 0.5,
        y: top + heads.layer[place] * cell + 0.5,
        width: cell - 1,
        height: cell - 1,
        "data-place": place,
      });
      grid.append(cells[place]);
    }
    const title = element("figcaption", {}, model.name);
    byId("grids").append(element("figure", {}, title, grid));
  }

  models.forEach(drawGrid);

  const cellAt = (event) =>
    event.target.dataset.place === undefined ? null : Number(event.target.dataset.place);

  // Pointing

  function point(place, event) {
    moveRing(pointedRing, place);
    const tip = byId("tip");
    tip.hidden = place === null;
    if (place === null) return;
    const words = element(
      "div",
      {},
      element("b", {}, nameOf(place)),
      element("span", {}, modelOf(place)),
      element("span", {}, `layer ${heads.layer[place]}, head ${heads.head[place]}`),
      element("span", {}, readable(templateOf(place))),
    );
    tip.replaceChildren(drawPicture(place), words);
    const { width, height } = tip.getBoundingClientRect();
    const x = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - height - 4))}px`;
  }

  // The chosen head

  let chosen = null;

  function choose(place) {
    if (chosen !== null) cells[chosen].classList.remove("chosen");
    chosen = place;
    cells[place].classList.add("chosen");
    cells[place].parentNode.append(cells[place]); // its frame lies over its neighbours
    moveRing(ring, place);
    const near = new Set(heads.nearest[place].flat().map(([other]) => other));
    const group = new Set(groups[groupOf.get(place)].members);
    marks.forEach((mark, other) => {
      mark.classList.toggle("near", near.has(other));
      mark.classList.toggle("group", group.has(other) && !near.has(other));
    });
    const [x1, y1] = heads.place[place];
    lines.replaceChildren(
      ...[...near].map((other) => {
        const [x2, y2] = heads.place[other];
        return svg("line", { x1, y1, x2, y2 });
      }),
    );
    describe(place);
  }

  const drawShape = (model) =>
    svg("svg", { viewBox: "-7 -7 14 14" }, svg("path", { d: shapeOf(model)(5) }));

  function headButton(place, ...content) {
    const button = element(
      "button",
      { type: "button", className: `t-${templateOf(place)}` },
      ...content,
    );
    button.addEventListener("click", () => {
      point(null); // this button goes, and will not say that it was left
      choose(place);
    });
    button.addEventListener("pointermove", (event) => point(place, event));
    button.addEventListener("pointerleave", () => point(null));
    return button;
  }

  const neighbour = ([place, similarity]) =>
    headButton(
      place,
      drawPicture(place),
      element("b", {}, nameOf(place)),
      element("span", {}, similarity.toFixed(2)),
    );

  // Where there are several models, a shape says whose head it is.
  const member = (place) =>
    headButton(
      place,
      ...(models.length > 1 ? [drawShape(heads.model[place])] : []),
      element("b", {}, nameOf(place)),
    );

  const titled = (text, more) => element("h3", {}, text, element("span", {}, more));

  function describe(place) {
    const dot = element("i", {});
    const facts = element("dl", {});
    const fact = (name, ...value) =>
      facts.append(element("dt", {}, name), element("dd", {}, ...value));
    fact("on repeated random tokens", dot, readable(templateOf(place)));
    fact("on how many of them", percent(heads.share[place]));
    fact("varies with the prompt (0 to 1)", heads.spread[place].toFixed(2));
    dot.className = `t-${templateOf(place)}`;

    const nearest = heads.nearest[place].flatMap((found, model) => [
      titled("Nearest", ` in ${models[model].name}`),
      element("div", { className: "heads" }, ...found.map(neighbour)),
    ]);
    byId("detail").replaceChildren(
      element("h2", {}, nameOf(place), element("span", {}, ` of ${modelOf(place)}`)),
      element("div", { id: "what" }, drawPicture(place), facts),
      ...nearest.filter((part, i) => i % 2 || nearest[i + 1].children.length),
      ...describeGroup(place),
      ...describeDepartures(place),
    );
  }

  function describeGroup(place) {
    const number = groupOf.get(place);
    const { name, share, members } = groups[number];
    const named = name === "mixed" ? "no template in common" : `${readable(name)} ${percent(share)}`;
    const others = members.filter((other) => other !== place);
    const listed = others.slice(0, LISTED).map(member);
    if (others.length > LISTED) {
      listed.push(element("span", {}, `and ${others.length - LISTED} more`));
    }
    return [
      titled(`Group ${number + 1}`, ` · ${counted(members.length, "head")}, ${named}`),
      element("div", { className: "heads" }, ...listed),
    ];
  }

  function describeDepartures(place) {
    const { texts } = models[heads.model[place]];
    const list = element("ul", { id: "departures" });
    heads.departures[place].forEach((prompt, i) => {
      const beyond = percent(heads.surprises[place][i]);
      list.append(
        element(
          "li",
          {},
          `prompt ${prompt}: ${beyond} of attention beyond its habit`,
          element("code", { dir: "ltr" }, texts[prompt]),
        ),
      );
    });
    list.querySelectorAll("code").forEach((code) => setTimeout(() => (code.scrollTop = 1e6)));
    return [titled("Departs most from its habit", " · at the end of"), list];
  }

  // Search, and what the legend lets through

  let kept = { template: null, model: null };

  const matches = (place, wanted) => {
    const name = /^l?\s*(\d+)\s*[h.]\s*(\d+)$/.exec(wanted);
    if (name) return heads.layer[place] === +name[1] && heads.head[place] === +name[2];
    return readable(templateOf(place)).includes(readable(wanted)) || nameOf(place).toLowerCase().startsWith(wanted);
  };

  const wanted = () => byId("search").value.trim().toLowerCase();

  function found() {
    return every.filter(
      (place) =>
        (kept.template === null || heads.template[place] === kept.template) &&
        (kept.model === null || heads.model[place] === kept.model) &&
        (wanted() === "" || matches(place, wanted())),
    );
  }

  function sift() {
    const through = new Set(found());
    every.forEach((place) => {
      marks[place].classList.toggle("dim", !through.has(place));
      cells[place].classList.toggle("dim", !through.has(place));
    });
    const all = through.size === every.length;
    byId("found").textContent = all ? "" : through.size ? counted(through.size, "head") : "no such head";
  }

  byId("search").addEventListener("input", () => {
    sift();
    const through = found();
    if (wanted() !== "" && through.length && !through.includes(chosen)) choose(through[0]);
  });

  function addKey(what, value, label, mark) {
    const button = element("button", { type: "button", className: "key" }, mark, label);
    button.setAttribute("aria-pressed", false);
    button.dataset[what] = value;
    button.addEventListener("click", () => {
      kept[what] = kept[what] === value ? null : value;
      showKept();
    });
    byId("bar").append(button);
  }

  function showKept() {
    for (const button of document.querySelectorAll(".key")) {
      const [[what, value]] = Object.entries(button.dataset);
      button.setAttribute("aria-pressed", kept[what] === Number(value));
    }
    sift();
  }

  templates.forEach((name, number) => {
    const n = heads.template.filter((other) => other === number).length;
    const dot = element("i", { className: `t-${name}` });
    if (n) addKey("template", number, `${readable(name)} ${n}`, dot);
  });
  if (models.length > 1) {
    models.forEach(({ name }, number) => {
      addKey("model", number, name, drawShape(number));
    });
  }

  // Mouse and keys

  for (const [area, at] of [
    [scatter, headAt],
    [byId("grids"), cellAt],
  ]) {
    area.addEventListener("pointermove", (event) => point(at(event), event));
    area.addEventListener("pointerleave", () => point(null));
    area.addEventListener("click", (event) => {
      const place = at(event);
      if (place !== null) choose(place);
    });
  }

  // The next head of the same model in a direction; layers without attention are passed over.
  function step(layers, across) {
    const model = heads.model[chosen];
    let layer = heads.layer[chosen] + layers;
    const head = heads.head[chosen] + across;
    while (layer >= 0 && layer < models[model].layers) {
      const place = placeOf.get(`${model} L${layer}H${head}`);
      if (place !== undefined) return choose(place);
      if (!layers) return;
      layer += layers;
    }
  }

  function letGo() {
    byId("search").value = "";
    kept = { template: null, model: null };
    showKept();
    byId("map").focus();
  }

  const KEYS = {
    ArrowUp: () => step(-1, 0),
    ArrowDown: () => step(1, 0),
    ArrowLeft: () => step(0, -1),
    ArrowRight: () => step(0, 1),
    "/": () => byId("search").focus(),
    Escape: letGo,
  };

  // In the search field Enter goes to the next head that was found.
  const SEARCH_KEYS = {
    Enter: () => {
      const through = found();
      if (through.length) choose(through[(through.indexOf(chosen) + 1) % through.length]);
    },
    Escape: letGo,
  };

  document.addEventListener("keydown", (event) => {
    const keys = event.target === byId("search") ? SEARCH_KEYS : KEYS;
    if (!keys[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); // nothing scrolls
    keys[event.key]();
  });

  choose(data.first);
})().catch((error) => {
  document.getElementById("detail").textContent =
    `This browser cannot draw the map (${error.message}).`;
});
