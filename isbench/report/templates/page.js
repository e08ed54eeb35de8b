// The switch of the axis, tables that sort, filters, and buttons that copy.
for (const button of document.querySelectorAll("button[data-to]")) button.addEventListener("click", () => {
  document.documentElement.dataset.axis = button.dataset.to;
  for (const other of document.querySelectorAll("button[data-to]")) other.setAttribute("aria-pressed", other === button);
  document.dispatchEvent(new Event("axis"));
  for (const table of document.querySelectorAll("table.sortable")) sort(table);
});

// What a row is sorted by: of a cell that depends on the axis, the part that is shown.
function key(row, column) {
  const cell = row.cells[column], shown = cell.querySelector(`[data-at="${chosenAxis()}"]`) || cell;
  return shown.dataset.value ?? shown.textContent.trim();
}

// Sorts a table by the column that is marked, numbers before text, what has no value last.
function sort(table) {
  const headers = [...table.tHead.rows[0].cells], column = headers.findIndex((header) => header.ariaSort);
  if (column < 0) return;
  const sign = headers[column].ariaSort === "descending" ? -1 : 1, body = table.tBodies[0];
  const rank = (value) => value === "" || value === "nan" ? 2 : Number.isNaN(Number(value)) ? 1 : 0;
  const compare = (a, b) => rank(a) - rank(b) || sign * (rank(a) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => compare(key(a, column), key(b, column))));
}

for (const button of document.querySelectorAll("table.sortable thead button")) button.addEventListener("click", () => {
  const header = button.closest("th"), next = header.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", next);
  sort(header.closest("table"));
});

const filters = [...document.querySelectorAll("select[data-filter]")], tally = document.querySelector(".filters output");
// Hides what the menus leave out, and rows of the table that have no number at what is chosen to be equal.
function filter() {
  let others = 0;
  for (const part of document.querySelectorAll("[data-paper]")) {
    const fits = filters.every(({ value, dataset }) => !value || part.dataset[dataset.filter].split("|").includes(value));
    const lacks = part.matches("tr") && !part.querySelector(`[data-at="${chosenAxis()}"]:not([data-value=""])`);
    part.hidden = !fits || lacks;
    others += fits && lacks;
  }
  const count = (selector) => document.querySelectorAll(`${selector}:not([hidden])`).length;
  tally.textContent = `variants shown: ${count("tr[data-paper]")}` +
    `${others ? `, not compared at equal ${chosenAxis()}: ${others}` : ""}, experiments: ${count("article[data-paper]")}`;
}
for (const select of filters) select.addEventListener("change", filter);
if (filters.length) {
  document.addEventListener("axis", filter);
  filter();
}

for (const button of document.querySelectorAll("button[data-measure]")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll("button[data-measure]")) other.setAttribute("aria-pressed", other === button);
  for (const list of document.querySelectorAll("[data-of]")) list.hidden = list.dataset.of !== button.dataset.measure;
});

for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", async () => {
  const code = button.parentNode.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {  // no permission: select it, which every browser allows
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});
