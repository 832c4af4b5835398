// The desk's pages work without this; it draws charts, tells times in the reader's zone, and keeps live parts live.
"use strict";

const DARK = matchMedia("(prefers-color-scheme: dark)");

function localTimes(root) {
  const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.textContent = ("seconds" in time.dataset ? exact : shown).format(at);
    time.title = whole.format(at);
  }
}

function chartConfig() {
  const css = getComputedStyle(document.documentElement);
  const of = (name) => css.getPropertyValue(name).trim();
  const axis = { labelColor: of("--muted"), titleColor: of("--muted"), gridColor: of("--line"), domainColor: of("--line"), tickColor: of("--line"),
                 labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: "normal" };
  return { background: "transparent", font: getComputedStyle(document.body).fontFamily, axis, view: { stroke: null },
           legend: { labelColor: of("--ink"), titleColor: of("--muted"), labelFontSize: 12, orient: "top", title: null },
           range: { category: [of("--accent"), of("--review"), of("--audit"), of("--done"), of("--decide"), of("--stop")] },
           mark: { color: of("--accent") }, text: { color: of("--ink") }, rule: { color: of("--muted") }, title: { color: of("--ink"), subtitleColor: of("--muted"), fontSize: 12, anchor: "start" } };
}

let library = null;
function chartLibrary() {  // no name of Vega's: what it brings would take its place
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.querySelector("meta[name=vega]").content;
    script.onload = () => resolve(window.vegaEmbed);
    script.onerror = () => reject(new Error("the library that draws charts cannot be loaded"));
    document.head.append(script);
  });
  return library;
}

async function drawChart(place) {
  try {
    const answer = await fetch(place.dataset.chart, { headers: { Accept: "application/json" } });
    const spec = await answer.json();
    if (!answer.ok) throw new Error(spec.error || answer.statusText);
    if (spec.empty) {
      place.innerHTML = "";
      const note = document.createElement("p");
      note.className = "empty";
      note.textContent = place.dataset.empty || "Nothing to draw yet.";
      place.append(note);
      return;
    }
    const embed = await chartLibrary();
    place.view?.finalize();
    // ast: no code is made of text, as the pages' security policy demands
    const made = await embed(place, spec, { ast: true, actions: false, renderer: "svg", defaultStyle: false, config: chartConfig(),
                                            tooltip: { disableDefaultStyle: true } });
    place.view = made.view;
    place.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  } catch (error) {
    place.textContent = `This chart cannot be drawn: ${error.message}`;
  } finally {
    place.dataset.drawn = "yes";
  }
}

function drawCharts(root) {
  for (const place of root.querySelectorAll("[data-chart]")) drawChart(place);
}

function keepLive() {  // parts of a page about what is under way: the page is asked again, and they are replaced
  if (!document.querySelector("[data-live=yes]")) return;
  setTimeout(async () => {
    try {
      const answer = document.hidden ? null : await fetch(location.href);
      if (answer?.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live]")) renew(part, page);
      }
    } catch { /* the server is away for a moment: asked again */ }
    keepLive();
  }, 5000);
}

async function loadPart(place) {  // a part of a page that takes longer; without this its link stays
  const note = place.querySelector("[data-waiting]");
  const link = note.innerHTML;
  note.textContent = note.dataset.waiting;
  const answer = await fetch(place.dataset.part).catch(() => null);
  if (!answer?.ok) { note.innerHTML = link; return; }
  const part = new DOMParser().parseFromString(await answer.text(), "text/html");
  localTimes(part);
  place.replaceChildren(...part.body.childNodes);
  reachable();
}

// The slider of the threshold: everything it tells comes with the page, only the pictures are asked for.
function threshold(panel) {
  const { ladder, steps, confidence, bad } = JSON.parse(panel.querySelector("[data-ladder]").textContent);
  const range = panel.querySelector("input[type=range]");
  const say = (name, text) => { panel.querySelector(`[data-${name}]`).textContent = text; };
  const number = new Intl.NumberFormat();
  const percent = (share) => `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`;
  const duration = (seconds) => seconds < 60 ? `${Math.round(seconds)} s` : seconds < 3600 ? `${Math.round(seconds / 60)} min`
    : `${(seconds / 3600).toFixed(seconds < 360000 ? 1 : 0)} h`;
  const near = document.querySelector("[data-near]");
  const chart = document.querySelector("#chart-risk-coverage .drawing");
  const heap = panel.querySelector("[data-heap]");
  let later = 0;

  function pile() {  // the masks by predicted IoU, as bars over the slider; those without a human wait there
    const wide = 4, bars = [], from = ladder.accepted;
    for (let k = 0; k < steps; k += wide) bars.push(from[k] - (k + wide < steps ? from[k + wide] : 0));
    const most = Math.max(...bars);
    if (!most) return;
    heap.replaceChildren(...bars.map((count, k) => {
      const bar = document.createElement("i");
      bar.style.height = `${(100 * count) / most}%`;
      bar.title = `${number.format(count)} from ${((k * wide) / steps).toFixed(2)} to ${(((k + 1) * wide) / steps).toFixed(2)}`;
      return bar;
    }));
    heap.hidden = false;
  }
  function point() {
    chart?.view?.signal("at", reached()?.coverage ?? -1).run();
  }
  function reached() {  // the loosest audited mask that still reaches the threshold
    return ladder.reached.filter((one) => one.threshold >= Number(range.value)).at(-1);
  }
  function tell() {
    const at = Number(range.value), accepted = ladder.accepted[Math.round(at * steps)];
    const review = ladder.accepted[0] - accepted + ladder.unusable, found = reached();
    say("at", at.toFixed(3));
    say("accepted", number.format(accepted));
    say("review", number.format(review + ladder.audit));
    say("audit", `${number.format(ladder.audit)} of them audits`);
    say("hours", ladder.seconds === null ? "-" : duration((review + ladder.audit) * ladder.seconds));
    say("saved", ladder.seconds === null ? "no label has told its time yet" : `${duration(accepted * ladder.seconds)} saved`);
    say("bad", found ? percent(found.bad / found.scenes) : "-");
    say("bound", found ? `${found.bad} of ${found.scenes}; at most ${percent(found.high)}, ${percent(confidence)} sure` : "");
    say("note", found ? `Bad: ${bad}. ${ladder.waiting ? `${number.format(ladder.waiting)} images wait for a prediction. ` : ""}The bound is of this threshold alone; a promise also guards against choosing it by its looks.`
      : "No audited mask reaches this threshold, so how good its masks are is unknown.");
    for (const input of document.querySelectorAll("[data-follows]")) input.value = at.toFixed(3);
    [...heap.children].forEach((bar, k, all) => bar.classList.toggle("above", (k + 0.5) / all.length >= at));
    point();
  }
  function look() {
    clearTimeout(later);
    later = setTimeout(async () => {
      const answer = await fetch(`${near.dataset.near}?at=${range.value}`);
      if (answer.ok) near.innerHTML = await answer.text();
    }, 250);
  }
  range.addEventListener("input", () => { tell(); look(); });
  chart?.addEventListener("drawn", point);
  pile();
  tell();
}

function reachable() {  // what scrolls sideways can be scrolled by keyboard too
  for (const box of document.querySelectorAll(".scroll"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
}

function renew(part, page) {
  const fresh = part.id ? page.getElementById(part.id) : page.querySelector("[data-live]");
  const selected = getSelection();
  const busy = part.contains(document.activeElement) || (!selected.isCollapsed && selected.containsNode(part, true));
  if (!fresh || busy) return;  // what somebody is at stays; the next round finds it
  const [top, left] = [part.scrollTop, part.scrollLeft];
  localTimes(fresh);
  confirmFirst(fresh);
  part.replaceWith(fresh);
  fresh.scrollTo(left, top);
  if (fresh.dataset.stamp !== part.dataset.stamp) drawCharts(document.getElementById(fresh.dataset.redraw));
}

function confirmFirst(root) {
  for (const form of root.querySelectorAll("form[data-confirm]"))
    form.addEventListener("submit", (event) => { if (!confirm(form.dataset.confirm)) event.preventDefault(); });
}

document.addEventListener("DOMContentLoaded", () => {
  reachable();
  addEventListener("resize", reachable);
  localTimes(document);
  drawCharts(document);
  keepLive();
  for (const place of document.querySelectorAll("[data-part]")) loadPart(place);
  for (const panel of document.querySelectorAll("[data-slider]")) threshold(panel);
  for (const box of document.querySelectorAll("input[data-layer]"))
    box.addEventListener("change", () => document.body.classList.toggle(`no-${box.dataset.layer}`, !box.checked));
  confirmFirst(document);
});
DARK.addEventListener("change", () => drawCharts(document));
