"use strict";
// Tables that sort and filter, and line charts to look into. Nothing is fetched, nothing is evaluated; text goes in as text.
(() => {
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#882255", "#e69f00", "#56b4e9", "#222222", "#cc79a7"];
  const DASHES = ["", "7 3", "9 3 2 3", "2 3", "5 2", "4 2 1 2", "1 2", "10 3 3 3"];
  const SVG = "http://www.w3.org/2000/svg";
  const [W, H, LEFT, RIGHT, TOP, BOTTOM] = [960, 360, 70, 15, 12, 45];

  const make = (name, attributes = {}, text = "") => {
    const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    return node;
  };
  const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4)));

  // -- tables

  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const order = (a, b) => {
    const [numberA, numberB] = [typeof a === "number", typeof b === "number"];
    if (numberA && numberB) return Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : a - b;
    return numberA !== numberB ? (numberA ? -1 : 1) : a.localeCompare(b, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => order(key(a, column), key(b, column)));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
    if (body.rows.length > 15) {
      const filter = make("input", { class: "filter", type: "search", placeholder: "show rows with ...", "aria-label": "filter rows" });
      filter.addEventListener("input", () => {
        const wanted = filter.value.toLowerCase();
        for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      });
      table.parentNode.before(filter);
    }
  }

  // -- charts

  const ticks = (low, high, log) => {
    const found = [];
    if (log) {
      for (let e = Math.floor(low); e <= Math.ceil(high); e++)
        for (const m of high - low < 2.5 ? [1, 2, 5] : [1]) found.push(Math.log10(m) + e);
    } else {
      const raw = (high - low) / 6, size = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= raw);
      for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(+v.toPrecision(12));
    }
    return found.filter((v) => v >= low - 1e-12 && v <= high + 1e-12);
  };

  const chart = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const still = figure.querySelector(".still");
    const onX = data.logX ? Math.log10 : (v) => v;
    const offX = data.logX ? (v) => 10 ** v : (v) => v;
    const shown = data.series.map(() => true);
    const points = data.series.map((s) => s.x.map((x, i) => [x, s.y[i]]).filter(([x, y]) => x !== null && y !== null && (!data.logX || x > 0)).map(([x, y]) => [onX(x), y]));
    let zoom = null, drag = null;

    const legend = make("div", { class: "legend" });
    const svg = make("svg:svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${data.y} over ${data.x}`, tabindex: "0" });
    const hint = make("p", { class: "hint" }, "Point to read values; drag to draw a stretch large, double-click or Esc to see all; press a name to hide its line.");
    figure.append(legend, svg, hint);
    still.style.display = "none";
    data.series.forEach((s, i) => {
      const button = make("button", { type: "button", "aria-pressed": "true" });
      button.append(make("span", { class: "swatch", style: `border-top: 3px ${["solid", "dashed", "dotted"][i % 3]} ${COLOURS[i % 8]}` }), s.name);
      button.addEventListener("click", () => {
        shown[i] = !shown[i];
        button.setAttribute("aria-pressed", String(shown[i]));
        draw();
      });
      legend.append(button);
    });

    const limits = () => {
      const seen = points.filter((_, i) => shown[i]).flat();
      if (!seen.length) return [0, 1, 0, 1];
      let [x0, x1, y0, y1] = [Infinity, -Infinity, 0, -Infinity];
      for (const [x] of seen) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); }
      if (zoom) [x0, x1] = zoom;
      for (const [x, y] of seen) if (x >= x0 && x <= x1) { y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
      if (x1 <= x0) x1 = x0 + 1;
      if (!(y1 > y0)) y1 = y0 + 1;
      return [x0, x1, y0, y1 + (y1 - y0) * 0.05];
    };
    const draw = (pointer = null) => {
      const [x0, x1, y0, y1] = limits();
      const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
      const py = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
      svg.replaceChildren();
      const text = (x, y, label, anchor = "middle", size = 13) => svg.append(make("svg:text", { x, y, "text-anchor": anchor, "font-size": size, fill: "#333" }, label));
      for (const v of ticks(x0, x1, data.logX)) {
        svg.append(make("svg:line", { x1: px(v), x2: px(v), y1: TOP, y2: H - BOTTOM, stroke: "#e2e2e2" }));
        text(px(v), H - BOTTOM + 17, short(offX(v)));
      }
      for (const v of ticks(y0, y1, false)) {
        svg.append(make("svg:line", { x1: LEFT, x2: W - RIGHT, y1: py(v), y2: py(v), stroke: "#e2e2e2" }));
        text(LEFT - 7, py(v) + 4, short(v), "end");
      }
      text((W + LEFT) / 2, H - 6, data.x);
      const name = make("svg:text", { x: 0, y: 0, transform: `translate(14 ${H / 2 - 15}) rotate(-90)`, "text-anchor": "middle", "font-size": 13, fill: "#333" }, data.y);
      svg.append(name);
      points.forEach((line, i) => {
        if (!shown[i]) return;
        let path = "", last = null;
        for (const [x, y] of line) {
          if (x < x0 || x > x1) { if (x < x0) last = y; continue; }
          const at = `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
          if (!path) path = last === null || !data.steps ? `M${at}` : `M${px(x0).toFixed(1)} ${py(last).toFixed(1)}H${px(x).toFixed(1)}V${py(y).toFixed(1)}`;
          else path += data.steps ? `H${px(x).toFixed(1)}V${py(y).toFixed(1)}` : `L${at}`;
          last = y;
        }
        svg.append(make("svg:path", { d: path, fill: "none", stroke: COLOURS[i % 8], "stroke-width": 2, "stroke-dasharray": DASHES[i % 8] }));
      });
      if (drag) svg.append(make("svg:rect", { x: Math.min(drag[0], drag[1]), width: Math.abs(drag[1] - drag[0]), y: TOP, height: H - TOP - BOTTOM, fill: "#0072b2", opacity: 0.15 }));
      else if (pointer !== null) readout(pointer, x0, x1, px, py);
    };
    const readout = (pointer, x0, x1, px, py) => {
      const x = x0 + ((pointer - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
      if (x < x0 || x > x1) return;
      const rows = [];
      points.forEach((line, i) => {
        if (!shown[i] || !line.length) return;
        let low = 0, high = line.length - 1;
        while (low < high) { const middle = (low + high + 1) >> 1; if (line[middle][0] <= x) low = middle; else high = middle - 1; }
        if (!data.steps && low + 1 < line.length && line[low + 1][0] - x < x - line[low][0]) low += 1;
        const [at, y] = line[low];
        svg.append(make("svg:circle", { cx: px(data.steps ? x : at), cy: py(y), r: 4, fill: COLOURS[i % 8] }));
        rows.push(`${data.series[i].name}: ${short(y)}${data.steps ? "" : ` at ${short(offX(at))}`}`);
      });
      svg.append(make("svg:line", { x1: pointer, x2: pointer, y1: TOP, y2: H - BOTTOM, stroke: "#555", "stroke-dasharray": "3 3" }));
      const width = 14 + 7.3 * Math.max(...rows.map((r) => r.length), 8), side = pointer + width + 12 > W ? pointer - width - 8 : pointer + 8;
      svg.append(make("svg:rect", { x: side, y: TOP + 4, width, height: 24 + 17 * rows.length, fill: "#fff", stroke: "#999", opacity: 0.94 }));
      [`${data.x}: ${short(offX(x))}`, ...rows].forEach((row, i) => svg.append(make("svg:text", { x: side + 7, y: TOP + 20 + 17 * i, "font-size": 12.5, fill: "#111" }, row)));
    };
    const where = (event) => {
      const box = svg.getBoundingClientRect();
      return Math.min(W - RIGHT, Math.max(LEFT, ((event.clientX - box.left) / box.width) * W));
    };
    const all = () => { zoom = null; drag = null; draw(); };
    svg.addEventListener("pointerdown", (e) => { drag = [where(e), where(e)]; svg.setPointerCapture(e.pointerId); });
    svg.addEventListener("pointermove", (e) => { if (drag) drag[1] = where(e); draw(where(e)); });
    svg.addEventListener("pointerup", () => {
      const [a, b] = [Math.min(...drag), Math.max(...drag)], [x0, x1] = limits();
      const back = (p) => x0 + ((p - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
      if (b - a > 8) zoom = [back(a), back(b)];
      drag = null;
      draw();
    });
    svg.addEventListener("pointercancel", all);
    svg.addEventListener("pointerleave", () => { if (!drag) draw(); });
    svg.addEventListener("dblclick", all);
    svg.addEventListener("keydown", (e) => { if (e.key === "Escape") all(); });
    draw();
  };
  for (const figure of document.querySelectorAll("figure.chart")) chart(figure);
})();
