// A click on a column head sorts the rows by the last number in that column: high first, low first, as it was.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], asItWas = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column], numbers = cell.textContent.match(/\d+(\.\d+)?(?!.*\d)|–$/);
    return column === 0 ? cell.firstChild.textContent.trim() : numbers && numbers[0] !== "–" ? Number(numbers[0]) : NaN;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const [first, second] = column === 0 ? ["ascending", "descending"] : ["descending", "ascending"];
      const before = head.getAttribute("aria-sort"), order = before === first ? second : before ? null : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const rows = [...asItWas];
      if (order) {
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((one, other) => {
          const a = value(one, column), b = value(other, column);
          if (typeof a === "string") return sign * a.localeCompare(b);
          return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0;
        });
      }
      body.append(...rows);
    });
  });
}
