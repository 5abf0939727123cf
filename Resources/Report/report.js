"use strict";
// A cell as what it is sorted by: a number, text in lower case, or null where it is empty.
function cellKey(row, column) {
  const text = row.cells[column].textContent.trim();
  return text === "" ? null : Number.isNaN(Number(text)) ? text.toLowerCase() : Number(text);
}

function compareKeys(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

// Sort a table by a column, upwards first, empty cells last either way.
function sortBy(head) {
  const table = head.closest("table");
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows, (row) => [cellKey(row, head.cellIndex), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compareKeys(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// Show the rows that have every chosen value.
function filter(table) {
  const chosen = Array.from(document.querySelectorAll(`select[data-table="${table.id}"]`)).filter((one) => one.value);
  for (const row of table.tBodies[0].rows) {
    row.hidden = chosen.some((one) => row.cells[Number(one.dataset.column)].textContent !== one.value);
  }
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
for (const select of document.querySelectorAll("select[data-table]")) {
  select.addEventListener("change", () => filter(document.getElementById(select.dataset.table)));
}
