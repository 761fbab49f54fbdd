// Draws the charts of the page, one after the other so that the text can be read at once, and again when the colour
// scheme changes or the page is printed. Nothing waits for scrolling.
(() => {
  "use strict";
  const data = document.getElementById("page-data");
  const page = data ? JSON.parse(data.textContent) : { charts: {}, config: {} };
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();
  let round = 0;

  const scheme = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  // Columns to rows. Text columns hold positions in a list of their distinct texts.
  const rowsOf = ({ columns, texts, length }) => {
    const names = Object.keys(columns);
    const cell = (name, i) => {
      const value = columns[name][i];
      return name in texts && value !== null ? texts[name][value] : value;
    };
    return Array.from({ length }, (_, i) => Object.fromEntries(names.map((name) => [name, cell(name, i)])));
  };

  // A layer that the reader chose stays chosen when the chart is drawn again.
  const chosen = (name, params) =>
    params.map((param) => (views.has(name) && "value" in param ? { ...param, value: views.get(name).view.signal(param.name) } : param));

  const specOf = (name, look) => {
    const { spec, data } = page.charts[name];
    const made = { ...spec, datasets: Object.fromEntries(Object.entries(data).map(([key, frame]) => [key, rowsOf(frame)])) };
    if (spec.params) made.params = chosen(name, spec.params);
    if (look === "paper" && spec.width === "container") made.width = page.container;
    return made;
  };

  // look: light, dark or paper
  const draw = async (name, look) => {
    const figure = document.getElementById(`chart-${name}`);
    const target = figure.querySelector(".drawing");
    try {
      const spec = specOf(name, look);
      views.get(name)?.finalize();
      const made = await vegaEmbed(target, spec, {
        mode: "vega-lite",
        ast: true,
        actions: false,
        logLevel: 1, // errors
        renderer: page.charts[name].renderer,
        config: page.config[look],
        tooltip: { theme: look === "dark" ? "dark" : "light" },
      });
      views.set(name, made);
      figure.dataset.state = "drawn";
      figure.querySelectorAll("button[data-save]").forEach((button) => (button.disabled = false));
    } catch (error) {
      figure.dataset.state = "failed";
      target.textContent = `This chart could not be drawn: ${error.message}. Its numbers are in the table below.`;
    }
  };

  const drawAll = async () => {
    const mine = ++round;
    root.dataset.charts = "drawing";
    for (const name of Object.keys(page.charts)) {
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== round) return; // the scheme changed meanwhile, or the page is printed
      await draw(name, scheme());
    }
    root.dataset.charts = "drawn";
    loaded();
  };

  // The browser lays out paper as soon as the promises that are pending here are settled: no chart may wait for a timer.
  const drawPaper = () => {
    round++;
    root.dataset.charts = "paper";
    for (const name of Object.keys(page.charts)) draw(name, "paper");
  };

  // The load event waits for a document that is still being written, and so do programs that print or take a picture of
  // the page once it is loaded. In a sandboxed frame, as a notebook's, there is no such document, and nothing waits.
  const waiting = document.createElement("iframe");
  waiting.hidden = true;
  const loaded = () => {
    if (!waiting.isConnected) return;
    waiting.contentDocument?.close();
    waiting.remove();
  };

  const save = async (name, type) => {
    const view = views.get(name).view;
    const link = document.createElement("a");
    link.href = await view.toImageURL(type, type === "png" ? 2 : 1);
    link.download = `${name}.${type}`;
    link.click();
  };

  const toggle = document.getElementById("theme");
  const label = () => {
    const next = scheme() === "dark" ? "light" : "dark";
    toggle.textContent = next === "dark" ? "Dark" : "Light";
    toggle.setAttribute("aria-label", `Switch to the ${next} colour scheme`);
  };
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("nvtxmoe-theme", value);
      return localStorage.getItem("nvtxmoe-theme");
    } catch {
      return null; // storage is off for files in some browsers
    }
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = scheme() === "dark" ? "light" : "dark";
    remembered(root.dataset.theme);
    label();
    drawAll();
  });
  dark.addEventListener("change", () => {
    if (root.dataset.theme) return;
    label();
    drawAll();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-save]");
    if (button) save(button.dataset.chart, button.dataset.save);
  });

  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  label();
  toggle.hidden = false;
  window.addEventListener("beforeprint", drawPaper);
  window.addEventListener("afterprint", drawAll);
  document.body.append(waiting);
  waiting.contentDocument?.open();
  // After the text is painted; a tab in the background paints nothing.
  const begin = () => round || drawAll();
  requestAnimationFrame(() => setTimeout(begin));
  setTimeout(begin, 300);
})();
