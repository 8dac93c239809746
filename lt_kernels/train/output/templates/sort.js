// A table is sorted by the column whose heading is chosen; without this script it is as it was written.
for (const heading of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const body = heading.closest("table").tBodies[0];
    const up = heading.getAttribute("aria-sort") === "descending";
    const key = (row) => {
      const text = row.cells[heading.cellIndex].textContent.trim();
      const number = Number.parseFloat(text.replaceAll(",", ""));
      return Number.isNaN(number) ? text : number;
    };
    const compare = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
    body.append(...rows.map(([, row]) => row));
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  });
}
