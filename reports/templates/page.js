"use strict";
// For every table: sorting by a click on a heading, filtering by words, and pages where there are many rows, most of which
// lie in scripts beside the page and are loaded at the first click or word. Reads text only, writes no markup.
const SHOWN = 500;
const arrived = {};
function convbenchRows(name, number, rows) {
  arrived[`${name}-${number}`] = rows;
}

function fetched(name, number) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${name}-${number}.js`;
    script.onload = () => resolve(arrived[`${name}-${number}`]);
    script.onerror = () => reject(new Error(`${name}-${number}.js is not beside this page`));
    document.head.append(script);
  });
}

const compare = (x, y) => {
  if (typeof x === "number" && typeof y === "number") return x === y ? 0 : x < y ? -1 : 1;
  return String(x).localeCompare(String(y), "en", { numeric: true });
};

class Rows {
  constructor(table) {
    this.table = table;
    this.body = table.tBodies[0];
    this.headings = [...table.tHead.rows[0].cells];
    this.filter = document.querySelector(`input[data-table="${table.id}"]`);
    this.pages = document.querySelector(`.pages[data-table="${table.id}"]`);
    this.rows = [...this.body.rows].map((element) => ({
      element,
      keys: [...element.cells].map((cell) =>
        cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key.replace("inf", "Infinity"))),
      text: [...element.cells].map((cell) => cell.textContent).join(" ").toLowerCase(),
    }));
    this.total = Number(table.dataset.total || this.rows.length);
    this.kept = this.rows;
    this.start = 0;
    this.complete = this.rows.length === this.total;
    this.headings.forEach((heading, column) =>
      heading.querySelector("button").addEventListener("click", () => this.whole(() => this.sort(heading, column))));
    if (this.filter) {
      this.filter.addEventListener("input", () => this.whole(() => this.show(0)));
      this.count(this.total);
    }
    if (this.pages) {
      const [back, on] = this.pages.querySelectorAll("button");
      back.addEventListener("click", () => this.whole(() => this.show(Math.max(this.start - SHOWN, 0))));
      on.addEventListener("click", () =>
        this.whole(() => this.show(this.start + SHOWN < this.kept.length ? this.start + SHOWN : this.start)));
    }
  }

  // Then, with every row at hand.
  whole(then) {
    if (this.complete) return then();
    this.loading ??= this.load();
    return this.loading.then(then, (error) => { this.pages.querySelector("span").textContent = error.message; });
  }

  async load() {
    const { rows: name, files } = this.table.dataset;
    for (let number = 1; number <= Number(files); number++) {
      this.pages.querySelector("span").textContent = `loading, ${number} of ${files}`;
      for (const row of await fetched(name, number)) {
        const texts = row.map((cell) => (typeof cell === "string" ? cell : cell[0]));
        const keys = row.map((cell) => (typeof cell === "string" ? cell : cell[1] ?? Infinity));
        this.rows.push({ texts, keys, text: texts.join(" ").toLowerCase() });
      }
    }
    this.complete = true;
  }

  element(row) {
    if (!row.element) {
      row.element = document.createElement("tr");
      row.texts.forEach((text, column) => {
        const cell = row.element.insertCell();
        cell.textContent = text;
        cell.className = this.headings[column].className;
      });
    }
    return row.element;
  }

  sort(heading, column) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of this.headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    this.rows.sort((a, b) => compare(a.keys[column], b.keys[column]));
    if (down) this.rows.reverse();
    this.show(0);
  }

  show(start) {
    const words = this.filter ? this.filter.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    this.kept = words.length ? this.rows.filter((row) => words.every((word) => row.text.includes(word))) : this.rows;
    this.start = start;
    const shown = this.pages ? this.kept.slice(start, start + SHOWN) : this.kept;
    this.body.replaceChildren(...shown.map((row) => this.element(row)));
    if (this.filter) this.count(this.kept.length);
    if (this.pages) {
      const last = start + shown.length;
      this.pages.querySelector("span").textContent = `rows ${Math.min(start + 1, last)} to ${last} of ${this.kept.length}`;
    }
  }

  count(found) {
    this.filter.closest("p").querySelector("span").textContent = `${found} of ${this.total} rows`;
  }
}

for (const table of document.querySelectorAll("table")) new Rows(table);
