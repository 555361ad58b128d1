// The page's own script: draws the charts, follows the theme, shows a record. It loads nothing.
"use strict";
(() => {
  const root = document.documentElement;
  const records = [];
  let doc = null;

  const read = id => JSON.parse(document.getElementById(id).textContent);

  // --- charts ---
  async function draw() {
    const { doc: told, roots } = read("charts-data");
    const known = new Set(document.querySelectorAll(".chart [id]"));
    console.assert(known.size === Object.keys(roots).length, "a chart has no place");
    await Bokeh.embed.embed_items({ report: told }, [{ docid: "report", roots, root_ids: Object.keys(roots) }]);
    doc = Bokeh.documents[0];
    for (const model of doc._all_models.values()) {
      if (model.tags.includes("records")) {
        records.push(model);
        model.selected.properties.indices.change.connect(() => {
          const chosen = model.selected.indices;
          if (chosen.length === 1) location.hash = "record-" + model.data.id[chosen[0]];
        });
      }
    }
    dress();
  }

  // What has no colour of its own takes the page's ink, and a dark page has a lighter blue; axes and grids read the
  // page's variables at every repaint.
  const LIGHTER = { "#0072b2": "#55a8e6" };
  const drawn = new Map();  // model and property -> the colour that it was made with
  const COLOURS = ["line_color", "fill_color", "text_color", "hatch_color"];

  function dress() {
    const ink = getComputedStyle(root).getPropertyValue("--mark").trim();
    const colour = made => (isDark() && LIGHTER[String(made).toLowerCase()]) || made;
    for (const model of doc._all_models.values()) {
      if (!model.glyph && model.type !== "Span" && !model.tags.includes("ink")) continue;
      const spec = Boolean(model.glyph);
      const target = model.glyph ?? model;
      for (const name of COLOURS) {
        if (!(name in target.properties)) continue;
        const key = `${target.id} ${name}`;
        const now = target[name];
        if (!drawn.has(key)) drawn.set(key, spec && now && typeof now === "object" ? now.value : now);
        const made = drawn.get(key);
        if (made === null || made === undefined) continue;
        const wanted = model.tags.includes("ink") ? ink : colour(made);
        target[name] = spec ? { value: wanted } : wanted;
      }
    }
    for (const mark of document.querySelectorAll(".mark")) mark.style.color = colour(mark.dataset.colour);
    for (const view of Object.values(Bokeh.index)) view.request_repaint?.();
  }

  function keys() {
    for (const button of document.querySelectorAll("button.key")) {
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const model of doc._all_models.values()) {
          if (model.name === button.dataset.name) model.visible = on;
        }
      });
    }
  }

  // --- theme ---
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  function theme(name) {
    if (name) root.dataset.theme = name;
    const button = document.getElementById("theme");
    button.textContent = isDark() ? "Light page" : "Dark page";
    if (doc) dress();
  }
  function remember(name) {
    try { localStorage.setItem("cathpc-theme", name); } catch { /* a browser that keeps nothing */ }
  }
  function remembered() {
    try { return localStorage.getItem("cathpc-theme"); } catch { return null; }
  }

  // --- records ---
  function find(id) {
    for (const source of records) {
      const ids = source.data.id;
      const row = id.length < 6 ? -1 : ids.findIndex(other => other.startsWith(id));
      if (row >= 0) {
        const told = {};
        for (const [name, column] of Object.entries(source.data)) told[name] = column[row];
        return told;
      }
    }
    return null;
  }

  const FIGURES = [
    ["source", "source"], ["component", "component"], ["generator", "generator"], ["rule", "verdict"],
    ["value", "its figure for that rule"], ["threshold", "threshold"], ["refusal", "refusal score"],
    ["contrast", "contrast, nats a token"], ["perplexity", "perplexity"], ["tokens", "answer, tokens"],
    ["correlatives", "correlatives"], ["steps", "thought steps"], ["diagnosis", "diagnosis"],
  ];
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const plain = value => typeof value !== "number" ? value : Number.isInteger(value) ? String(value) : value.toPrecision(4);

  function show(id) {
    const whole = document.getElementById("record-" + id);
    const panel = document.getElementById("record");
    panel.replaceChildren();
    if (whole) {
      whole.open = true;
      whole.scrollIntoView();
      return;
    }
    const told = find(id);
    panel.append(make("h3", told ? `Record ${told.id}` : `Record ${id} is not on this page`));
    if (told) {
      if (told.words) panel.append(make("p", told.words));
      const list = document.createElement("dl");
      for (const [key, label] of FIGURES) {
        const value = told[key];
        if (value === undefined || value === null || value === "" || Number.isNaN(value)) continue;
        list.append(make("dt", label), make("dd", plain(value)));
      }
      panel.append(list);
    }
    const line = make("p", "The whole record, with every rule: ");
    line.append(make("code", `python -m cathpc explain ${told ? told.id : id} --run '${panel.dataset.run}*'`));
    panel.append(line);
    panel.scrollIntoView({ block: "nearest" });
    panel.focus({ preventScroll: true });
  }

  function follow() {
    const hash = decodeURIComponent(location.hash);
    if (/^#record-[0-9a-f]{6,16}$/.test(hash)) show(hash.slice(8));
  }

  // --- start ---
  theme(remembered());
  dark.addEventListener("change", () => theme());
  document.getElementById("theme").addEventListener("click", () => {
    const name = isDark() ? "light" : "dark";
    remember(name);
    theme(name);
  });
  document.getElementById("find").addEventListener("submit", event => {
    event.preventDefault();
    const id = new FormData(event.target).get("id").trim().toLowerCase();
    if (/^[0-9a-f]{6,16}$/.test(id)) location.hash = "record-" + (find(id)?.id ?? id);
  });
  keys();
  draw().then(() => {
    root.dataset.drawn = "yes";
    addEventListener("hashchange", follow);
    follow();
  }).catch(error => {
    root.classList.remove("js");  // the still pictures
    console.error(error);
  });
})();
