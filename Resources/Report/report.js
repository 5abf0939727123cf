"use strict";
// Sorting by a click on a column's head: numbers by value, text by the alphabet, empty cells last.
function cellKey(row, column) {
  const text = row.cells[column].textContent.trim();
  const value = Number(text.replace("\u2212", "-"));
  return text === "" ? null : Number.isNaN(value) ? text.toLowerCase() : value;
}

function compareKeys(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

function sortBy(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows, (row) => [cellKey(row, column), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compareKeys(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// Rows of the table of volumes are shown where every chosen value is theirs.
function filter(table) {
  const chosen = Array.from(document.querySelectorAll(`select[data-table="${table.id}"]`));
  for (const row of table.tBodies[0].rows) {
    row.hidden = chosen.some((one) => one.value && row.cells[Number(one.dataset.column)].textContent !== one.value);
  }
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
for (const select of document.querySelectorAll("select[data-table]")) {
  select.addEventListener("change", () => filter(document.getElementById(select.dataset.table)));
}
