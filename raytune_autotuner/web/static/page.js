// The only script of ours: draws the figures that the server made, and says whether updates arrive.
"use strict";

Idiomorph.defaults.ignoreActiveValue = true; // what somebody types is not replaced
Idiomorph.defaults.callbacks.beforeNodeMorphed = (node) => !(node.dataset && "keep" in node.dataset);
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");

document.addEventListener("htmx:afterSwap", (event) => { // the text follows the form also where somebody only stands in it
  const [text, shown] = [document.getElementById("text"), document.getElementById("shown")];
  if (!shown || document.activeElement !== text || document.querySelector("fieldset.form:disabled")) return;
  if (event.detail.requestConfig.formData.get("text") !== text.value) return; // more was typed meanwhile
  const at = text.selectionStart;
  text.value = shown.value;
  text.setSelectionRange(at, at);
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

const theme = matchMedia("(prefers-color-scheme: dark)");

async function draw(box) {
  const answer = await fetch(`${box.dataset.plots}&theme=${theme.matches ? "dark" : "light"}`);
  if (!answer.ok) return;
  const plots = await answer.json();
  for (const figure of [...box.children]) if (!(figure.id.slice("plot-".length) in plots)) figure.remove();
  for (const [name, plot] of Object.entries(plots)) { // all at first: how wide one is depends on those beside it
    const figure = document.getElementById(`plot-${name}`) || added(box, name);
    figure.style.setProperty("--needs", `${plot.min_width}px`);
  }
  for (const [name, plot] of Object.entries(plots)) {
    await new Promise((go) => setTimeout(go)); // a large one takes a second, and updates come between
    const figure = document.getElementById(`plot-${name}`);
    figure.querySelector("h3").textContent = plot.title;
    figure.querySelector("figcaption").textContent = plot.caption;
    figure.querySelector(".numbers").innerHTML = plot.table; // made by the server, which escapes
    const chart = figure.querySelector(".chart");
    chart.style.height = `${plot.height}px`;
    chart.style.minWidth = `${plot.min_width}px`;
    chart.setAttribute("role", "group");
    chart.setAttribute("aria-label", `${plot.title}. ${plot.caption}`);
    await Plotly.react(chart, plot.figure.data, plot.figure.layout, {
      displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"],
    });
  }
  box.dataset.drawn = box.dataset.version;
}

function added(box, name) {
  const figure = document.createElement("figure");
  figure.className = "plot";
  figure.id = `plot-${name}`;
  figure.innerHTML = `<h3></h3><div class="scroll area" tabindex="0" role="region"><div class="chart"></div></div><figcaption></figcaption><details>
    <summary>The numbers as a table</summary><div class="scroll numbers" tabindex="0" role="region"></div></details>`;
  figure.querySelector(".numbers").setAttribute("aria-label", `Numbers: ${name}`);
  figure.querySelector(".area").setAttribute("aria-label", `Plot: ${name}`);
  box.append(figure);
  return figure;
}

function drawWhatIsNew() {
  const now = document.getElementById("plots-version");
  for (const box of document.querySelectorAll("[data-plots]")) {
    if (now && box.dataset.version !== now.dataset.version) {
      const wait = 1000 * (box.dataset.everyS || 0) - (Date.now() - (box.begun || 0));
      if (wait > 0) {
        box.later ||= setTimeout(drawWhatIsNew, wait);
        continue;
      }
      [box.begun, box.later] = [Date.now(), null];
      box.dataset.version = now.dataset.version;
      draw(box);
    }
  }
}

document.addEventListener("DOMContentLoaded", drawWhatIsNew);
document.addEventListener("htmx:afterSettle", drawWhatIsNew);
theme.addEventListener("change", () => document.querySelectorAll("[data-plots]").forEach(draw));

// Browsers allow six connections to a server, tabs together: one that nobody looks at holds none.
const state = document.getElementById("live-state");
const streams = new Set();

function listen() {
  for (const page of document.querySelectorAll("[data-live]")) watch(page);
  for (const tail of document.querySelectorAll("[data-log]:not([data-over])")) follow(tail);
}

function opened(address) {
  const source = new EventSource(address);
  streams.add(source);
  return source;
}

function watch(page) {
  const source = opened(`${page.dataset.live}?since=${encodeURIComponent(page.dataset.since)}`);
  source.addEventListener("open", () => { state.textContent = "live"; });
  source.addEventListener("error", () => { state.textContent = "the server is away; trying again"; });
  source.addEventListener("changed", (event) => {
    page.dataset.since = event.data;
    htmx.trigger(page, "changed");
  });
}

function follow(tail) {
  const source = opened(tail.dataset.log);
  let anew = true; // each time that it is opened, the end of the log is told again
  source.addEventListener("open", () => { anew = true; });
  source.addEventListener("log", (event) => {
    const atEnd = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40;
    if (anew) tail.textContent = "";
    anew = false;
    tail.append(JSON.parse(event.data));
    if (atEnd) tail.scrollTop = tail.scrollHeight;
  });
  source.addEventListener("over", () => {
    tail.dataset.over = "";
    source.close();
  });
}

function rest() {
  for (const source of streams) source.close();
  streams.clear();
}

document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
if (!document.hidden) listen();
