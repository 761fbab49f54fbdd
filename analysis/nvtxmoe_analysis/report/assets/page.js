// Draws the charts of the page, one after the other so that the text can be read at once, and again when the colour
// scheme changes.
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

  const specOf = (chart) => ({
    ...chart.spec,
    datasets: Object.fromEntries(Object.entries(chart.data).map(([name, data]) => [name, rowsOf(data)])),
  });

  const draw = async (name) => {
    const figure = document.getElementById(`chart-${name}`);
    const target = figure.querySelector(".drawing");
    const chart = page.charts[name];
    try {
      views.get(name)?.finalize();
      const made = await vegaEmbed(target, specOf(chart), {
        mode: "vega-lite",
        ast: true,
        actions: false,
        logLevel: 1, // errors
        renderer: chart.renderer,
        config: page.config[scheme()],
        tooltip: { theme: scheme() === "dark" ? "dark" : "light" },
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
      if (mine !== round) return; // the scheme changed meanwhile
      await draw(name);
    }
    root.dataset.charts = "drawn";
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
  requestAnimationFrame(() => setTimeout(drawAll));
})();
