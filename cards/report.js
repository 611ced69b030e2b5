// Of report.html: sorting of tables, and the value of the mark under the pointer. Without scripts the report shows the same numbers.
"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
        body.append(...rows.sort((one, other) => compare(one.cells[column], other.cells[column], column, order)));
      }
    });
  });
}

// Unknown values come last in both orders; an empty or missing data-value is unknown.
function compare(one, other, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  if (column === 0) return sign * other.textContent.localeCompare(one.textContent);
  const [a, b] = [one, other].map((cell) => (cell && cell.dataset.value ? Number(cell.dataset.value) : NaN));
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("svg .hover");
  tip.hidden = !mark;
  if (!mark) return;
  const title = mark.querySelector("title");
  if (title) {
    mark.dataset.value = title.textContent;
    title.remove(); // the browser's own tooltip would cover this one
  }
  tip.textContent = mark.dataset.value;
  const width = tip.offsetWidth;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
});
