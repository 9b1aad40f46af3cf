"use strict";
// Tables that sort by a column, and maps that are drawn, pointed at and walked through.

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      const number = (text) => (text === "" ? NaN : Number(text.replace(/,/g, "")));
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)], [m, n] = [number(x), number(y)];
        const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

class View {
  // One canvas: points in 0…1, a square of which is in sight: its corner (x, y) and its side.
  constructor(map, canvas, points) {
    Object.assign(this, { map, canvas, points, x: 0, y: 0, side: 1 });
    this.buckets = new Map();
    for (let i = 0; i < map.count; i++) {
      const key = (points[2 * i] >> 6) * 64 + (points[2 * i + 1] >> 6);
      if (!this.buckets.has(key)) this.buckets.set(key, []);
      this.buckets.get(key).push(i);
    }
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    // A finger points by touching: it never moves without holding.
    canvas.addEventListener("pointerdown", (event) => { this.moved(event); this.held = [event.offsetX, event.offsetY]; canvas.setPointerCapture(event.pointerId); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { this.held = null; });
    canvas.addEventListener("wheel", (event) => { if (event.ctrlKey || event.metaKey) { event.preventDefault(); this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, this.place(event)); } }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }
  place(event) {
    const size = Math.min(this.canvas.clientWidth, this.canvas.clientHeight);
    const [left, top] = [(this.canvas.clientWidth - size) / 2, (this.canvas.clientHeight - size) / 2];
    return [this.x + ((event.offsetX - left) / size) * this.side, this.y + ((event.offsetY - top) / size) * this.side];
  }
  at(i) { return [this.points[2 * i] / 4095, 1 - this.points[2 * i + 1] / 4095]; }
  zoom(factor, [cx, cy] = [this.x + this.side / 2, this.y + this.side / 2]) {
    if (!factor) Object.assign(this, { x: 0, y: 0, side: 1 });
    else {
      const side = Math.min(1, this.side / factor);
      this.x = cx - ((cx - this.x) * side) / this.side;
      this.y = cy - ((cy - this.y) * side) / this.side;
      this.side = side;
    }
    this.draw();
  }
  moved(event) {
    if (this.held) {
      const size = Math.min(this.canvas.clientWidth, this.canvas.clientHeight);
      this.x -= ((event.offsetX - this.held[0]) / size) * this.side;
      this.y -= ((event.offsetY - this.held[1]) / size) * this.side;
      this.held = [event.offsetX, event.offsetY];
      return this.draw();
    }
    const [x, y] = this.place(event);
    const found = this.nearest(x, y);
    if (found !== null) this.map.tell(found);
  }
  nearest(x, y) {
    let best = null, least = (0.02 * this.side) ** 2;
    const [bx, by] = [Math.floor(x * 64), Math.floor((1 - y) * 64)];
    for (let i = bx - 1; i <= bx + 1; i++) for (let j = by - 1; j <= by + 1; j++)
      for (const point of this.buckets.get(i * 64 + j) || []) {
        if (!this.map.shows(point)) continue;
        const [px, py] = this.at(point), away = (px - x) ** 2 + (py - y) ** 2;
        if (away < least) [best, least] = [point, away];
      }
    return best;
  }
  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.zoom(0);
    else if (!way) return;
    else this.step(way);
    event.preventDefault();
  }
  step([dx, dy]) {
    // To the item that lies nearest in a cone of that direction; the first step goes to the one nearest the middle.
    const from = this.map.told === null ? [this.x + this.side / 2, this.y + this.side / 2] : this.at(this.map.told);
    let best = null, least = Infinity;
    for (let i = 0; i < this.map.count; i++) {
      if (i === this.map.told || !this.map.shows(i)) continue;
      const [x, y] = this.at(i), [ax, ay] = [x - from[0], y - from[1]];
      const along = ax * dx + ay * dy, across = Math.abs(ax * dy - ay * dx);
      const away = this.map.told === null ? ax * ax + ay * ay : along > 0 && across <= along ? along * along + 4 * across * across : Infinity;
      if (away < least) [best, least] = [i, away];
    }
    if (best === null) return;
    this.map.tell(best);
    const [x, y] = this.at(best);
    if (x < this.x || y < this.y || x > this.x + this.side || y > this.y + this.side) {
      [this.x, this.y] = [x - this.side / 2, y - this.side / 2];
      this.draw();
    }
  }
  draw() {
    const ratio = window.devicePixelRatio || 1, { canvas, map } = this;
    canvas.style.touchAction = this.side < 1 ? "none" : "pan-y";  // a finger that scrolls past the whole map is not caught by it
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d"), size = Math.min(canvas.width, canvas.height) - 16 * ratio;
    const [left, top] = [(canvas.width - size) / 2, (canvas.height - size) / 2];
    const radius = ratio * Math.max(0.7, Math.min(3.2, 90 / Math.sqrt(map.count))) * Math.min(2, this.side ** -0.4);
    const onto = (i) => { const [x, y] = this.at(i); return [left + ((x - this.x) / this.side) * size, top + ((y - this.y) / this.side) * size]; };
    const faint = getComputedStyle(document.documentElement).getPropertyValue("--line");
    for (const shown of [false, true]) for (let i = 0; i < map.count; i++) {
      if (map.shows(i) !== shown) continue;
      const [x, y] = onto(i);
      context.fillStyle = shown ? map.colours[map.classes[i]] : faint;
      if (map.count > 20000) context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
      else { context.beginPath(); context.arc(x, y, radius, 0, 7); context.fill(); }
    }
    if (map.told !== null) {
      const [x, y] = onto(map.told);
      context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
      context.lineWidth = 2 * ratio;
      context.beginPath(); context.arc(x, y, 7 * ratio, 0, 7); context.stroke();
    }
  }
}

class Plane {
  static async of(element) {
    const map = new Plane(), data = JSON.parse(document.getElementById(element.dataset.map).textContent);
    Object.assign(map, { told: null, chosen: null, count: data.count, colours: data.colours, names: data.names, sheet: data.sheet });
    map.classes = new Uint32Array(await unpacked(data.classes));
    map.texts = data.texts === null ? null : new TextDecoder().decode(await unpacked(data.texts)).split("\n");
    map.tiles = new Map(data.sheet ? data.sheet.points.map((point, tile) => [point, tile]) : []);
    map.output = element.querySelector("output");
    map.views = [];
    const canvases = element.querySelectorAll("canvas");
    for (let i = 0; i < canvases.length; i++) map.views.push(new View(map, canvases[i], new Uint16Array(await unpacked(data.points[i]))));
    for (const button of element.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => map.views.forEach((view) => view.zoom(Number(button.dataset.zoom))));
    const select = element.querySelector("select");
    if (select) {
      [...map.names.keys()].sort((a, b) => map.names[a].localeCompare(map.names[b])).forEach((rank) => select.add(new Option(map.names[rank], rank)));
      select.addEventListener("change", () => { map.chosen = select.value === "" ? null : Number(select.value); map.draw(); });
    }
    element.dataset.ready = map.count;
    return map;
  }
  shows(i) { return this.chosen === null || this.classes[i] === this.chosen; }
  draw() { this.views.forEach((view) => view.draw()); }
  tell(i) {
    if (i === this.told) return;
    this.told = i;
    const label = this.names.length ? this.names[this.classes[i]] : "", text = this.texts ? this.texts[i] : "";
    this.output.replaceChildren();
    if (this.tiles.has(i)) {
      const tile = this.tiles.get(i), picture = document.createElement("i"), { across, side, source } = this.sheet;
      picture.style.background = `url(${source}) -${(tile % across) * side}px -${Math.floor(tile / across) * side}px`;
      this.output.append(picture);
    }
    const words = document.createElement("span"), name = document.createElement("b"), rest = document.createElement("bdi");
    name.dir = "auto";
    rest.textContent = text;
    name.textContent = label;
    words.append(name, label && text ? " " : "", rest);
    this.output.append(words);
    this.draw();
  }
}

const maps = [...document.querySelectorAll(".map")].map((element) => Plane.of(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Promise.all(maps).then((all) => all.forEach((map) => map.draw())));
