"use strict";
// The search box and the sorting of the table of classes; the page is whole without them.
const table = document.getElementById("class-table");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const box = document.getElementById("class-search");
const found = document.getElementById("class-found");
const text = rows.map((row) => row.cells[0].textContent.trim().toLocaleLowerCase());
box.parentElement.parentElement.hidden = false;
box.addEventListener("input", () => {
  const wanted = box.value.trim().toLocaleLowerCase();
  let count = 0;
  rows.forEach((row, at) => {
    row.hidden = !text[at].includes(wanted);
    count += row.hidden ? 0 : 1;
  });
  found.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes`;
});
const heads = Array.from(table.tHead.rows[0].cells);
heads.forEach((head, at) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent.trim();
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[at];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
    };
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      return typeof a === "number" ? a - b : a.localeCompare(b);
    };
    body.append(...rows.slice().sort((one, other) => (down ? -1 : 1) * compare(one, other)));
  });
});
