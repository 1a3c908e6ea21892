"""Style and script of the page about a run. The script shows the values under the pointer in all charts."""

STYLE = """
:root { --c0: #3b6ea8; --c1: #d1662b; --c2: #3a8f5f; --c3: #8a5fb8; --c4: #b8901c; --c5: #1f98a8; --c6: #c2528b;
  --c7: #7a6a55; --c8: #7f858d; }
@media (prefers-color-scheme: dark) { :root { --c0: #6f9fd6; --c1: #ee9a62; --c2: #6cc191; --c3: #b795e0;
  --c4: #dcb95a; --c5: #5cc4d2; --c6: #e58ab8; --c7: #b7a68d; --c8: #a6acb4; } }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.6rem 1.4rem; }
.chart svg { max-width: 34rem; touch-action: pan-y; cursor: crosshair; }
.chart figcaption { line-height: 1.35; margin-bottom: .35rem; }
.chart figcaption b { color: var(--ink); font-size: .95rem; }
.about { display: block; min-height: 2.7em; }
.chart .unit { white-space: nowrap; }
.chart path { fill: none; vector-effect: non-scaling-stroke; stroke: var(--c); stroke-linejoin: round;
  stroke-linecap: round; }
.chart .raw { stroke-width: 1; opacity: .38; }
.chart .line { stroke-width: 1.8; }
.chart .dots { stroke-width: 4; opacity: .6; }
.chart .area { fill: var(--c); stroke: none; }
.chart .lost { stroke: var(--alarm); stroke-width: 3; }
.stage { stroke: var(--quiet); stroke-dasharray: 2 3; }
.cursor { stroke: var(--ink); visibility: hidden; }
.at .cursor { visibility: visible; }
.at .title { visibility: hidden; }
.chart .place { fill: var(--ink); paint-order: stroke; stroke: var(--ground); stroke-width: 5px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; padding-left: .4rem; font-size: .83rem; color: var(--quiet);
  font-variant-numeric: tabular-nums; max-width: 34rem; }
.legend span { white-space: nowrap; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 2px; background: var(--c);
  margin-right: .35em; }
.legend b { color: var(--ink); font-weight: 500; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
video { width: 100%; display: block; background: var(--soft); }
@media print { :root { --c0: #3b6ea8; --c1: #d1662b; --c2: #3a8f5f; --c3: #8a5fb8; --c4: #b8901c; --c5: #1f98a8;
  --c6: #c2528b; --c7: #7a6a55; --c8: #7f858d; } .figures { grid-template-columns: 1fr 1fr; } }
"""

SCRIPT = r"""
'use strict';
const container = document.querySelector('.charts');
const end = +container.dataset.end, left = +container.dataset.left, width = +container.dataset.width;
const stages = container.dataset.stages.split(' ').filter(Boolean).map(pair => pair.split(':'));
const show = value => Math.abs(value) >= 1e5 || Math.abs(value) < 1e-4 && value ? value.toExponential(2)
  : String(+value.toPrecision(4));

// the points of a path are the data: steps and values (or their logarithms)
function read(path) {
  const numbers = path.getAttribute('d').replace(/V0H[\d.]+Z|h0/g, ' ').split(/[M\s]+/).filter(Boolean).map(Number);
  return {x: numbers.filter((_, i) => i % 2 === 0), y: numbers.filter((_, i) => i % 2)};
}

// the point nearest to a step; null if it is far away: in another stage, or before the first one
function nearest(line, step) {
  let low = 0, high = line.x.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (line.x[middle] < step) low = middle + 1; else high = middle;
  }
  if (low && step - line.x[low - 1] < line.x[low] - step) low--;
  return Math.abs(line.x[low] - step) < end / 30 ? {step: line.x[low], value: line.y[low]} : null;
}

const charts = [...container.querySelectorAll('.chart')].map(figure => {
  const svg = figure.querySelector('svg');
  const values = [...figure.querySelectorAll('.legend b')];
  return {figure, svg, values, last: values.map(value => value.textContent), log: +svg.dataset.log,
    stack: +svg.dataset.stack, cursor: svg.querySelector('.cursor'), place: svg.querySelector('.place')};
});

// parsed on the first use, so that a page with a thousand lines opens immediately
function lines(chart) {
  return chart.lines ??= chart.values.map((_, column) => {
    const [raw, smooth] = chart.svg.querySelectorAll(`path[data-column="${column}"]`);
    return {raw: read(raw), smooth: smooth && read(smooth)};
  });
}

function name(step) {
  let [start, stage] = [0, ''];
  for (const [first, title] of stages) if (+first < step || !stage) [start, stage] = [+first, `stage ${title}, `];
  return `${stage}step ${Math.round(step - start).toLocaleString('en')}`;
}

function point(chart, step) {
  const x = left + step / end * width;
  chart.cursor.setAttribute('x1', x);
  chart.cursor.setAttribute('x2', x);
  const real = value => chart.log ? 10 ** value : value;
  let below = 0, at = step;
  lines(chart).forEach((line, column) => {
    const raw = nearest(line.raw, step), mean = line.smooth && nearest(line.smooth, step);
    let shown = '—';
    if (raw) {
      at = column ? at : raw.step;
      shown = show(chart.stack ? raw.value - below : real(raw.value));
      below = raw.value;
    }
    chart.values[column].textContent = shown + (raw && mean ? ` ≈ ${show(real(mean.value))}` : '');
  });
  chart.place.textContent = name(at);
  chart.figure.classList.add('at');
}

function leave() {
  for (const chart of charts) {
    chart.figure.classList.remove('at');
    chart.place.textContent = '';
    chart.values.forEach((value, column) => { value.textContent = chart.last[column]; });
  }
}

for (const {svg} of charts) {
  const move = event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const step = Math.min(Math.max((x - left) / width, 0), 1) * end;
    requestAnimationFrame(() => charts.forEach(chart => point(chart, step)));
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', () => requestAnimationFrame(leave));
}
"""
